// The four calculators: which inputs they have, what they answer, which curves they draw. No page here.

import * as f from "./formulas.js";
import { bytes, count, gigabytes, number, percent, seconds, times } from "./words.js";

const GIB = 1024 ** 3;
const powers = (from, to) => {
  const found = [];
  for (let value = from; value <= to; value *= 2) found.push(value);
  return found;
};
// A curve is computed at these many places of a logarithmic axis.
const places = (from, to, steps = 60) =>
  Array.from({ length: steps + 1 }, (_, i) => from * (to / from) ** (i / steps));

const model = { id: "model", label: "Model", kind: "model" };
const device = { id: "device", label: "Device", kind: "device" };
const slider = (id, label, stops, value, shown = count) => ({ id, label, kind: "slider", stops, value, shown });

const kvMemory = {
  fields: [
    model,
    device,
    slider("context", "Tokens per sequence", [...powers(256, 32768), 40960], 4096),
    slider("sequences", "Sequences", powers(1, 1024), 32),
    slider("share", "Share of the memory that the engine may use", [0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95], 0.9, percent),
  ],
  compute({ model, device, context, sequences, share }) {
    const asked = f.kvBytes(model, context * sequences);
    const pool = f.kvPoolBytes(model, device.memory, share, GIB);
    const tokens = f.kvPoolTokens(model, device.memory, share, GIB, 16);
    const room = pool > 0 ? `${device.name} has ${bytes(pool)} for KV` : `${device.name} has no room for KV`;
    return {
      answer:
        `${count(sequences)} × ${count(context)} tokens need ${bytes(asked)} of KV. ` +
        `${room} beside ${model.name}: ${asked <= pool ? "they fit" : "they do not fit"}.`,
      rows: [
        ["KV per token", bytes(f.kvBytes(model))],
        ["KV per block of 16 tokens", bytes(f.kvBytes(model, 16))],
        ["Weights, bfloat16", bytes(f.weightBytes(model))],
        ["Left for KV, less 1 GiB of activations", pool > 0 ? bytes(pool) : "nothing"],
        ["Tokens that fit", count(tokens)],
        ["Sequences of this length that fit", count(Math.floor(tokens / context))],
        ["Tokens whose KV equals the weights", count(Math.floor(f.weightBytes(model) / f.kvBytes(model)))],
      ],
      chart: {
        x: { label: "tokens in the cache, all sequences", from: 1024, to: 8388608, shown: count, log2: true },
        y: { label: "GiB", shown: (value) => number(value) },
        lines: [
          { label: "KV", points: places(1024, 8388608).map((n) => [n, f.kvBytes(model, n) / GIB]) },
          { label: "room for KV", points: pool > 0 ? places(1024, 8388608, 1).map((n) => [n, pool / GIB]) : [] },
          { label: "weights", points: places(1024, 8388608, 1).map((n) => [n, f.weightBytes(model) / GIB]) },
        ],
        chosen: [[context * sequences, asked / GIB]],
      },
    };
  },
};

const roofline = {
  fields: [
    model,
    device,
    slider("batch", "Sequences in the step", powers(1, 1024), 32),
    slider("context", "Tokens that each one has", [0, ...powers(128, 32768)], 1024),
  ],
  compute({ model, device, batch, context }) {
    // A decode step: no chunk, every stream computes one token more.
    const memory = (n) => f.stepBytes(model, 0, 0, n, context) / device.bandwidth;
    const arithmetic = (n) => f.stepFlops(model, 0, 0, n, context) / device.flops;
    const [slow, fast] = [memory(batch), arithmetic(batch)];
    const bound = slow >= fast ? "memory bandwidth" : "arithmetic";
    const perSequence = (f.stepFlops(model, 0, 0, 1, context) / device.flops) - f.kvBytes(model, context + 1) / device.bandwidth;
    const meet = perSequence > 0 ? f.weightBytes(model) / device.bandwidth / perSequence : Infinity;
    const step = Math.max(slow, fast);
    return {
      answer:
        `A decode step of ${count(batch)} takes at least ${seconds(step)} on ${device.name}, ` +
        `bound by ${bound}: at most ${count(batch / step)} tokens per second.`,
      rows: [
        ["Reading weights and KV", `${gigabytes(f.stepBytes(model, 0, 0, batch, context))}, ${seconds(slow)}`],
        ["of which KV", percent(f.kvBytes(model, batch * (context + 1)) / f.stepBytes(model, 0, 0, batch, context))],
        ["Computing", `${number(f.stepFlops(model, 0, 0, batch, context) / 1e9)} GFLOP, ${seconds(fast)}`],
        ["FLOPs per byte", number(f.stepFlops(model, 0, 0, batch, context) / f.stepBytes(model, 0, 0, batch, context))],
        ["Ridge of the device", `${number(device.flops / device.bandwidth)} FLOPs per byte`],
        ["Batch from which arithmetic is the limit", Number.isFinite(meet) ? count(Math.ceil(meet)) : "none: KV grows with the batch"],
        ["Tokens per second that no batch exceeds", context ? count(device.bandwidth / f.kvBytes(model, context)) : "no limit by KV"],
      ],
      chart: {
        x: { label: "sequences in the step", from: 1, to: 1024, shown: count, log2: true },
        y: { label: "ms", shown: (value) => number(value) },
        lines: [
          { label: "bytes ÷ bandwidth", points: places(1, 1024).map((n) => [n, memory(n) * 1e3]) },
          { label: "FLOPs ÷ peak", points: places(1, 1024).map((n) => [n, arithmetic(n) * 1e3]) },
        ],
        chosen: [[batch, step * 1e3]],
      },
    };
  },
};

const chunkSize = {
  fields: [
    model,
    device,
    slider("prompt", "Tokens of the prompt that lands", powers(512, 32768), 8192),
    slider("budget", "Token budget of a step", powers(64, 32768), 512),
    slider("streams", "Streams that decode meanwhile", [0, ...powers(1, 256)], 32),
    slider("context", "Tokens that each stream has", powers(128, 16384), 1024),
    slider("overhead", "Added to every step: launches, planning", [0, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02], 0.002, seconds),
  ],
  compute({ model, device, prompt, budget, streams, context, overhead }) {
    const at = (n) =>
      f.chunkedPrefill(model, device.bandwidth, device.flops, prompt, n, streams, context, overhead);
    const whole = at(prompt + streams);
    const chosen = at(budget);
    const budgets = powers(64, 32768).filter((n) => at(n));
    const waiting = streams ? "the longest gap of the streams is" : "the longest step takes";
    return {
      answer: chosen
        ? `${count(prompt)} tokens land in ${count(chosen[0])} steps: ${waiting} ${seconds(chosen[1])} ` +
          `(${seconds(whole[1])} in one piece), the first token comes after ${seconds(chosen[2])} (${seconds(whole[2])}).`
        : `A budget of ${count(budget)} leaves no token beside ${count(streams)} streams.`,
      rows: chosen
        ? [
            ["Tokens of the prompt per step", count(budget - streams)],
            ["Steps", count(chosen[0])],
            ["Longest gap, ITL of the streams", seconds(chosen[1])],
            ["A step of the streams alone", streams ? seconds(chosen[3]) : "–"],
            ["Time to first token", seconds(chosen[2])],
            ["First token later than in one piece by", percent(chosen[2] / whole[2] - 1)],
          ]
        : [],
      chart: {
        x: { label: "token budget of a step", from: 64, to: 32768, shown: count, log2: true },
        y: { label: "ms", shown: (value) => number(value) },
        lines: [
          { label: "longest gap", points: budgets.map((n) => [n, at(n)[1] * 1e3]) },
          { label: "time to first token", points: budgets.map((n) => [n, at(n)[2] * 1e3]) },
        ],
        chosen: chosen ? [[budget, chosen[1] * 1e3], [budget, chosen[2] * 1e3]] : [],
      },
    };
  },
};

const gptqBytes = {
  fields: [
    model,
    device,
    slider("bits", "Bits of a weight", [2, 3, 4, 8], 4),
    slider("group", "Weights that share a scale", powers(16, 1024), 128),
  ],
  compute({ model, device, bits, group }) {
    const full = f.weightBytes(model);
    const packed = f.gptqModelBytes(model, group, bits);
    const linear = f.gptqLinearBytes(model, group, bits);
    const sizes = (width) => places(16, 1024).map((n) => [n, f.gptqModelBytes(model, n, width) / 1e9]);
    return {
      answer:
        `${model.name} shrinks from ${gigabytes(full)} to ${gigabytes(packed)} (${percent(1 - packed / full)} less). ` +
        `A step of one short sequence becomes at most ${times(full / packed)} as fast.`,
      rows: [
        ["Bits per weight with scale and zero point", number(f.gptqBitsPerWeight(group, bits))],
        ["Projections, quantised", gigabytes(linear)],
        ["Projections, bfloat16", gigabytes(2 * f.linearParameters(model))],
        ["Embedding, head and norms, kept", gigabytes(packed - linear)],
        ["Gain of a bandwidth-bound projection, at most", times(f.gptqLinearSpeedup(group, bits))],
        [
          `Tokens per step up to which it holds, ${device.name}`,
          count(f.gptqFullGainTokens(device.flops / device.bandwidth, group, bits)),
        ],
      ],
      chart: {
        x: { label: "weights that share a scale", from: 16, to: 1024, shown: count, log2: true },
        y: { label: "GB, whole model", shown: (value) => number(value), linear: true },
        lines: [
          { label: `${bits} bits`, points: sizes(bits) },
          { label: "bfloat16", points: places(16, 1024, 1).map((n) => [n, full / 1e9]) },
          { label: "kept as it is", points: places(16, 1024, 1).map((n) => [n, (packed - linear) / 1e9]) },
        ],
        chosen: [[group, packed / 1e9]],
      },
    };
  },
};

export const CARDS = { "kv-memory": kvMemory, roofline, "chunk-size": chunkSize, "gptq-bytes": gptqBytes };

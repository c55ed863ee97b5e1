// What a model costs: the formulas of common/model_costs.py and common/devices.py under the same names.
//
// Nothing here knows of the page. tools/tests/test_calculators.py compares every function with Python's on a grid of
// inputs. Bytes are bytes, FLOPs count a multiply and an add as two, times are seconds. A model is an object with
// layers, hidden, inner, heads, kvHeads, headDim, vocab, tied, qkNorm.

const ELEMENT = 2; // bytes of a bfloat16

export function linearParameters(m) {
  const q = m.heads * m.headDim;
  const kv = m.kvHeads * m.headDim;
  return m.layers * (m.hidden * (2 * q + 2 * kv) + 3 * m.hidden * m.inner);
}

export function totalParameters(m) {
  const norms = m.layers * (2 * m.hidden + (m.qkNorm ? 2 * m.headDim : 0)) + m.hidden;
  return linearParameters(m) + norms + m.vocab * m.hidden * (m.tied ? 1 : 2);
}

export function weightBytes(m, element = ELEMENT) {
  return totalParameters(m) * element;
}

export function kvBytes(m, tokens = 1, element = ELEMENT) {
  return tokens * 2 * m.layers * m.kvHeads * m.headDim * element;
}

export function kvPoolBytes(m, memory, utilization, activations) {
  return Math.floor(memory * utilization) - weightBytes(m) - activations;
}

export function kvPoolTokens(m, memory, utilization, activations, blockSize = 1) {
  const pool = kvPoolBytes(m, memory, utilization, activations);
  return pool > 0 ? Math.floor(pool / kvBytes(m, blockSize)) * blockSize : 0;
}

export function linearFlopsPerToken(m) {
  return 2 * linearParameters(m);
}

export function lmHeadFlopsPerRow(m) {
  return 2 * m.vocab * m.hidden;
}

export function attentionFlopsPerToken(m, context = 1) {
  return 4 * m.layers * m.heads * m.headDim * context;
}

// A step of one chunk, positions start to end, beside `streams` decodes of the same context. No chunk: start = end.
export function stepBytes(m, start, end, streams, context) {
  const chunk = end > start ? end : 0;
  return weightBytes(m) + kvBytes(m, chunk + (streams ? streams * (context + 1) : 0));
}

export function stepFlops(m, start, end, streams, context) {
  const tokens = end - start + streams;
  const rows = (end > start ? 1 : 0) + streams;
  const doubled = (end - start) * (start + end + 1) + streams * (2 * context + 2);
  return (
    tokens * linearFlopsPerToken(m) +
    Math.floor(doubled / 2) * attentionFlopsPerToken(m) +
    rows * lmHeadFlopsPerRow(m)
  );
}

export function stepFloorSeconds(m, bandwidth, flops, start, end, streams, context) {
  return Math.max(
    stepBytes(m, start, end, streams, context) / bandwidth,
    stepFlops(m, start, end, streams, context) / flops,
  );
}

// [steps, longest gap, time to first token, a step of the streams alone]; null where the budget has no room.
export function chunkedPrefill(m, bandwidth, flops, prompt, budget, streams, context, overhead) {
  const room = budget - streams;
  if (room < 1) return null;
  let steps = 0;
  let gap = 0;
  let ttft = 0;
  for (let begin = 0; begin < prompt; begin += room) {
    const end = Math.min(begin + room, prompt);
    const seconds = overhead + stepFloorSeconds(m, bandwidth, flops, begin, end, streams, context);
    steps += 1;
    gap = Math.max(gap, seconds);
    ttft += seconds;
  }
  const alone = streams ? overhead + stepFloorSeconds(m, bandwidth, flops, 0, 0, streams, context) : 0;
  return [steps, gap, ttft, alone];
}

export function gptqBitsPerWeight(groupSize, bits = 4, scaleBits = 16) {
  return bits + (scaleBits + bits) / groupSize;
}

export function gptqLinearBytes(m, groupSize, bits = 4) {
  return Math.round((linearParameters(m) * gptqBitsPerWeight(groupSize, bits)) / 8);
}

export function gptqModelBytes(m, groupSize, bits = 4) {
  return (totalParameters(m) - linearParameters(m)) * ELEMENT + gptqLinearBytes(m, groupSize, bits);
}

export function gptqLinearSpeedup(groupSize, bits = 4) {
  return 16 / gptqBitsPerWeight(groupSize, bits);
}

export function gptqFullGainTokens(ridge, groupSize, bits = 4) {
  return ridge / gptqLinearSpeedup(groupSize, bits);
}

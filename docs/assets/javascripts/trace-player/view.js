// Draws one frame of one trace: token bars, what the step computes, queues, blocks, events. The grammar is that of the
// figures (common/plot_style.py): request = hue, prefill solid, decode light, free outlined, shared double border, cached
// hatched, evicted crossed. Every mark carries its request's name too. data-* attributes say in full what is drawn.

import { filled, hasBlocks, hueOf, nameOf, tokensOf } from "./trace.js";
import { count, events } from "./words.js";

const MOST_BARS = 48;
const MOST_BLOCKS = 512;

/** An element; attributes with an empty value are left out, children are elements or text. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** One panel. `about` is { trace, label, index, steps, top, ruleOf }; index may lie behind the trace's end. */
export function panel(about) {
  const { trace, label, index } = about;
  const at = Math.min(index, trace.steps.length - 1);
  const frame = trace.frames[at];
  const done = index >= trace.steps.length;
  return [
    h("div", { class: "tp-head" }, h("strong", {}, label), counters(trace, frame, done)),
    bars(about, at),
    slices(trace, frame, done),
    queues(trace, frame),
    hasBlocks(trace) ? blocks(trace, frame) : null,
    eventList(about, frame, done),
  ].filter((part) => part !== null);
}

function counters(trace, frame, done) {
  const unit = trace.info.stage === "m2_batching" ? "slots" : "blocks";
  const parts = [done ? `done after ${trace.steps.length} steps` : `${count(tokensOf(frame.step), "token")} in this step`];
  if (hasBlocks(trace)) parts.push(`${frame.owners.size} of ${trace.info.num_blocks} ${unit} owned`);
  return h("span", { class: "tp-counters" }, parts.join(" · "));
}

// Bars up to the step shown: what comes later is for the reader to predict.
function bars({ trace, steps, top }, at) {
  const first = Math.floor(at / MOST_BARS) * MOST_BARS;
  const shown = Math.min(MOST_BARS, Math.max(steps - first, 1));
  const budget = trace.info.config?.max_num_batched_tokens;
  const columns = [];
  for (let index = first; index < first + shown; index += 1) {
    const step = trace.steps[index];
    const drawn = step && index <= at;
    const parts = drawn ? ordered(step).map((part) => segment(trace, part, top)) : [];
    if (drawn && step.num_padding_tokens)
      parts.push(h("i", { class: "tp-padding", style: `height:${(100 * step.num_padding_tokens) / top}%` }));
    columns.push(h("div", { class: "tp-bar", "data-step": index, "data-now": index === at }, ...parts));
  }
  const style = `grid-template-columns:repeat(${shown},minmax(0,1fr))`;
  const line =
    budget && budget <= top
      ? h("div", { class: "tp-budget", style: `bottom:${(100 * budget) / top}%` }, h("span", {}, `budget ${budget}`))
      : null;
  const dense = shown > 26 ? " tp-dense" : "";
  return h(
    "div",
    { class: `tp-chart${dense}`, "aria-hidden": "true" },
    h("div", { class: "tp-bars", style }, ...columns, ...(line ? [line] : [])),
    h(
      "div",
      { class: "tp-axis" },
      h("span", {}, `step ${first}`),
      h("span", {}, `tokens per step, up to ${top}`),
      h("span", {}, `${first + shown - 1}`),
    ),
  );
}

// Decodes below: their height is the number of running streams.
function ordered(step) {
  return [...step.slices].sort((a, b) => Number(a.phase === "prefill") - Number(b.phase === "prefill"));
}

function segment(trace, part, top) {
  const share = (100 * part.num_tokens) / top;
  const hue = hueOf(trace, part.seq_id);
  return h("i", {
    class: `tp-h${hue} tp-${part.phase}`,
    style: `height:${share}%`,
    "data-name": share >= 11 ? nameOf(trace, part.seq_id) : undefined,
  });
}

function slices(trace, frame, done) {
  const items = frame.step.slices.map((part) =>
    h(
      "li",
      {
        class: `tp-slice tp-h${hueOf(trace, part.seq_id)} tp-${part.phase}`,
        "data-seq": part.seq_id,
        "data-tokens": part.num_tokens,
        "data-phase": part.phase,
        style: `flex-grow:${Math.max(part.num_tokens, 1)}`,
      },
      h("b", {}, nameOf(trace, part.seq_id)),
      ` ${part.phase} ${part.num_tokens}`,
    ),
  );
  if (!items.length) items.push(h("li", { class: "tp-none" }, "nothing"));
  return row(done ? "Last step computed" : "This step computes", h("ul", { class: "tp-slices" }, ...items));
}

function row(name, list) {
  return h("div", { class: "tp-row" }, h("span", { class: "tp-name" }, name), list);
}

function queues(trace, frame) {
  const names = { waiting: "Waiting", running: "Running", preempted: "Preempted", finished: "Finished" };
  const rows = Object.entries(names).map(([key, name]) => {
    const chips = frame[key].map((id) => chip(trace, frame, id, key));
    if (!chips.length) chips.push(h("li", { class: "tp-none" }, "nobody"));
    return row(name, h("ul", { class: "tp-queue", "data-queue": key }, ...chips));
  });
  return h("div", { class: "tp-queues" }, ...rows);
}

function chip(trace, frame, id, queue) {
  const computed = frame.computed.get(id) ?? 0;
  const known = frame.known.get(id);
  const aborted = frame.reasons.get(id) === "abort";
  const text = { running: `${computed}/${known}`, finished: aborted ? "aborted" : "" }[queue] ?? `${known} to compute`;
  return h(
    "li",
    { class: `tp-chip tp-h${hueOf(trace, id)}${queue === "preempted" ? " tp-lost" : ""}`, "data-seq": id },
    h("b", {}, nameOf(trace, id)),
    text ? h("span", {}, text) : null,
  );
}

function blocks(trace, frame) {
  const fill = filled(trace, frame);
  const slots = trace.info.stage === "m2_batching";
  const evicted = new Set(frame.step.block_events.filter((e) => e.kind === "evict").map((e) => e.block));
  const total = trace.info.num_blocks;
  const named = trace.steps.flatMap((step) => step.block_events.map((event) => event.block));
  const shown = total <= MOST_BLOCKS ? total : Math.min(MOST_BLOCKS, Math.max(15, ...named) + 1);
  const cells = [];
  for (let block = 0; block < shown; block += 1)
    cells.push(cell(trace, frame, block, fill.get(block) ?? 0, evicted.has(block)));
  const title = slots ? `Slots of ${trace.info.block_size}` : `Blocks of ${trace.info.block_size}`;
  const more = shown < total ? ` (the first ${shown} of ${total})` : "";
  return row(title + more, h("ol", { class: `tp-blocks${slots ? " tp-slots" : ""}`, start: "0" }, ...cells));
}

function cell(trace, frame, block, fill, evicted) {
  const owners = frame.owners.get(block) ?? [];
  const cached = frame.cached.has(block);
  const names = owners.map((id) => nameOf(trace, id));
  const state = [
    owners.length ? `owned by ${names.join(" and ")}, ${Math.round(100 * fill)} % full` : "free",
    owners.length > 1 ? "shared" : "",
    cached ? "cached" : "",
    evicted ? "evicted in this step" : "",
  ].filter(Boolean);
  const classes = ["tp-block"];
  if (owners.length) classes.push(`tp-h${hueOf(trace, owners[0])}`, "tp-owned");
  if (owners.length > 1) classes.push("tp-shared");
  if (cached) classes.push("tp-cached");
  if (evicted) classes.push("tp-evicted");
  const label = names.length > 2 ? `×${names.length}` : names.join(" ");
  return h(
    "li",
    {
      class: classes.join(" "),
      "data-block": block,
      "data-owners": owners.join(" "),
      "data-fill": fill,
      title: `block ${block}: ${state.join(", ")}`,
      style: `--tp-fill:${100 * fill}%`,
    },
    h("span", { class: "tp-number", "aria-hidden": "true" }, String(block)),
    owners.length ? h("b", { "aria-hidden": "true" }, label) : null,
    h("span", { class: "tp-hidden" }, `block ${block}: ${state.join(", ")}`),
  );
}

/** What the signs mean, as far as they occur in these traces. */
export function key(traces) {
  const steps = traces.flatMap((trace) => trace.steps);
  const kinds = new Set(steps.flatMap((step) => step.block_events.map((event) => event.kind)));
  const phases = new Set(steps.flatMap((step) => step.slices.map((part) => part.phase)));
  const signs = [
    ["tp-prefill", "prefill", phases.has("prefill")],
    ["tp-decode", "decode", phases.has("decode")],
    ["tp-padding", "padding", steps.some((step) => step.num_padding_tokens)],
    ["tp-free", "free", traces.some(hasBlocks)],
    ["tp-shared", "several owners", kinds.has("share") || kinds.has("hit")],
    ["tp-block tp-cached", "content can be found", kinds.has("cache")],
    ["tp-block tp-evicted", "content lost in this step", kinds.has("evict")],
  ];
  const shown = signs.filter(([, , used]) => used);
  return h("p", { class: "tp-key" }, ...shown.map(([sign, text]) => h("span", {}, h("i", { class: sign }), text)));
}

function eventList({ trace, ruleOf }, frame, done) {
  if (done) return null;
  const items = events(trace, frame).map(({ rule, text }) => {
    const found = ruleOf(trace, rule);
    const link = found ? h("a", { href: found.href, title: found.place }, found.symbol) : null;
    return h("li", { "data-rule": rule }, h("span", {}, text), link);
  });
  return h("div", { class: "tp-row tp-happened" }, h("span", { class: "tp-name" }, "What happened"), h("ul", { class: "tp-events" }, ...items));
}

// Sentences about a step: one for screen readers, and one per kind of event with the name of the rule that caused it.

import { nameOf, tokensOf } from "./trace.js";

export const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
const list = (items) =>
  items.length < 3 ? items.join(" and ") : `${items.slice(0, -1).join(", ")} and ${items.at(-1)}`;
const requests = (trace, ids) => `request${ids.length === 1 ? "" : "s"} ${list(ids.map((id) => nameOf(trace, id)))}`;
const upper = (text) => text[0].toUpperCase() + text.slice(1);

const REASONS = { length: "has all its tokens", stop: "reaches a stop token", abort: "is aborted" };

/** Events of a step in the order of its life: [{ rule, text }]. */
export function events(trace, frame) {
  const { step } = frame;
  const found = [];
  const add = (rule, text) => found.push({ rule, text });
  for (const item of step.finished.filter((other) => other.reason === "abort"))
    add("abort", `request ${nameOf(trace, item.seq_id)} is aborted`);
  if (step.preempted.length) {
    const many = step.preempted.length > 1;
    add("preempt", `${requests(trace, step.preempted)} ${many ? "are" : "is"} preempted`);
  }
  addAdmissions(trace, step, add);
  addBlocks(trace, step, add);
  const ids = step.slices.map((part) => part.seq_id);
  const each = ids.length > 1 && step.slices.every((part) => part.num_tokens === 1);
  const computed = step.slices.map((part) => `${part.num_tokens} of request ${nameOf(trace, part.seq_id)}`);
  if (each) add("compute", `${ids.length} tokens: one each of ${requests(trace, ids)}`);
  else if (computed.length) add("compute", `${count(tokensOf(step), "token")}: ${list(computed)}`);
  for (const item of step.finished.filter((other) => other.reason !== "abort"))
    add("finish", `request ${nameOf(trace, item.seq_id)} ${REASONS[item.reason] ?? "ends"}`);
  return found.map((event) => ({ ...event, text: upper(event.text) }));
}

function addAdmissions(trace, step, add) {
  const plain = step.admitted.filter((item) => item.forked_from === null);
  const forked = step.admitted.filter((item) => item.forked_from !== null);
  if (plain.length)
    add("admit", `${requests(trace, plain.map((item) => item.seq_id))} begin${plain.length === 1 ? "s" : ""}`);
  for (const item of forked)
    add("share", `request ${nameOf(trace, item.seq_id)} is forked from ${nameOf(trace, item.forked_from)}`);
}

// Neighbouring events of one kind and owner are one line: "request 3 takes blocks 4, 5 and 6".
function addBlocks(trace, step, add) {
  const slots = trace.info.stage === "m2_batching";
  const groups = [];
  for (const event of step.block_events) {
    const last = groups.at(-1);
    if (last && last.kind === event.kind && last.seq_id === event.seq_id) last.items.push(event);
    else groups.push({ kind: event.kind, seq_id: event.seq_id, items: [event] });
  }
  for (const group of groups) {
    const unit = slots ? "slot" : "block";
    const blocks = list(group.items.map((item) => String(item.block)));
    const named = `${unit}${group.items.length === 1 ? "" : "s"} ${blocks}`;
    const who = group.seq_id === null ? "" : `request ${nameOf(trace, group.seq_id)}`;
    add(group.kind, blockText(group, named, who));
  }
}

function blockText({ kind, items }, named, who) {
  const several = items.length > 1;
  switch (kind) {
    case "alloc":
      return `${who} takes ${named}`;
    case "free":
      return `${who} gives ${named} back`;
    case "share":
      return `${who} shares ${named}`;
    case "hit":
      return `${who} finds ${named} in the cache`;
    case "cache":
      return `${named} of ${who} can be found from now on`;
    case "evict":
      return `${named} lose${several ? "" : "s"} ${several ? "their" : "its"} content`;
    default:
      return `${who} copies ${list(items.map((item) => `block ${item.source} to ${item.block}`))}`;
  }
}

/** One sentence or two that say what the step did, for the live region. */
export function sentence(trace, frame) {
  const { step } = frame;
  const decodes = step.slices.filter((part) => part.phase === "decode");
  const prefills = step.slices.filter((part) => part.phase === "prefill");
  const parts = prefills.map(
    (part) => `request ${nameOf(trace, part.seq_id)} computes ${count(part.num_tokens, "token")} (prefill)`,
  );
  if (decodes.length) {
    const ids = decodes.map((part) => part.seq_id);
    parts.push(`${requests(trace, ids)} decode${ids.length === 1 ? "s" : ""}`);
  }
  const rest = events(trace, frame)
    .filter((event) => ["abort", "preempt", "evict", "copy", "hit", "finish"].includes(event.rule))
    .map((event) => `${event.text}.`);
  const first = parts.length ? `${parts.join("; ")}.` : "nothing is computed.";
  return [`Step ${step.index}: ${first}`, ...rest].join(" ");
}

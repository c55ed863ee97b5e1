// A trace file (schema folovllm.trace, common/trace.py), read with the strictness that a file from a reader's disk needs,
// and replayed into one frame per step. Frames hold everything that is drawn, so drawing decides nothing.

const SCHEMA = "folovllm.trace";
const VERSION = 1;
const MOST_BYTES = 8_000_000;
const BLOCK_KINDS = ["alloc", "free", "share", "hit", "cache", "evict", "copy"];

/** A file that is no trace, or a trace that contradicts itself. The message is for the reader. */
export class TraceError extends Error {}

function fail(message) {
  throw new TraceError(message);
}

/** Turn the text of a trace file into { info, requests, sequences, steps, frames }. */
export function readTrace(text) {
  if (text.length > MOST_BYTES) fail("The file is larger than 8 MB. Record fewer steps.");
  let data;
  try {
    data = JSON.parse(text);
  } catch {
    fail("This is not a JSON file.");
  }
  if (data === null || typeof data !== "object" || data.schema !== SCHEMA)
    fail(`This is JSON, but no trace: its key "schema" is not "${SCHEMA}".`);
  if (data.version !== VERSION)
    fail(`This is version ${data.version} of the format; the page reads version ${VERSION}.`);
  checkShape(data);
  const trace = {
    info: data.info,
    requests: data.requests,
    sequences: new Map(data.sequences.map((item) => [item.seq_id, item])),
    steps: data.steps,
  };
  trace.frames = frames(trace);
  return trace;
}

function checkShape(data) {
  if (typeof data.info?.stage !== "string") fail('The key "info" names no stage.');
  for (const key of ["requests", "sequences", "steps"])
    if (!Array.isArray(data[key])) fail(`The key "${key}" is no list.`);
  if (!data.steps.length) fail("The trace has no step.");
  for (const item of data.requests)
    if (typeof item?.request_id !== "string" || !(item.num_prompt_tokens > 0)) fail("A request has no id or no prompt.");
  const requests = new Set(data.requests.map((item) => item.request_id));
  for (const item of data.sequences)
    if (!Number.isInteger(item?.seq_id) || !requests.has(item.request_id))
      fail("A sequence names no request of the trace.");
  const known = new Set(data.sequences.map((item) => item.seq_id));
  data.steps.forEach((step, at) => checkStep(step, at, known));
}

function checkStep(step, at, known) {
  if (step?.index !== at) fail(`Step ${at} is missing or out of order.`);
  for (const key of ["waiting", "running", "admitted", "preempted", "slices", "finished", "block_events"])
    if (!Array.isArray(step[key])) fail(`Step ${at}: the key "${key}" is no list.`);
  const named = [
    ...step.waiting,
    ...step.running,
    ...step.preempted,
    ...[...step.admitted, ...step.slices, ...step.finished].map((item) => item?.seq_id),
    ...step.block_events.filter((event) => event?.kind !== "evict").map((event) => event?.seq_id),
  ];
  for (const id of named)
    if (!known.has(id)) fail(`Step ${at} names sequence ${id}, which the trace does not list.`);
  for (const part of step.slices)
    if (
      ![part.num_tokens, part.start, part.num_known_tokens].every((number) => number >= 0) ||
      !["prefill", "decode"].includes(part.phase) ||
      !Array.isArray(part.token_ids)
    )
      fail(`Step ${at}: a slice of sequence ${part.seq_id} is incomplete.`);
  for (const event of step.block_events)
    if (!BLOCK_KINDS.includes(event.kind) || !Number.isInteger(event.block) || event.block < 0)
      fail(`Step ${at}: ${JSON.stringify(event)} is no block event.`);
}

/** "2", or "2/1" for one of several completions of request 2. */
export function nameOf(trace, seqId) {
  const item = trace.sequences.get(seqId);
  let several = 0;
  for (const other of trace.sequences.values()) several += other.request_id === item.request_id;
  return several > 1 ? `${item.request_id}/${item.index}` : item.request_id;
}

/** Which of the eight hues a sequence's request has. */
export function hueOf(trace, seqId) {
  const { request_id: id } = trace.sequences.get(seqId);
  return trace.requests.findIndex((item) => item.request_id === id) % 8;
}

/** Whether the trace says who owns which block or slot. */
export function hasBlocks(trace) {
  return Number.isInteger(trace.info.num_blocks) && trace.info.block_size > 0;
}

export function tokensOf(step) {
  return step.slices.reduce((sum, part) => sum + part.num_tokens, 0);
}

function frames(trace) {
  const state = {
    computed: new Map(),
    known: new Map(),
    finished: new Map(),
    lost: new Set(), // preempted, and not back yet
    owners: new Map(),
    tables: new Map(),
    cached: new Set(),
  };
  for (const [id, item] of trace.sequences) {
    const request = trace.requests.find((other) => other.request_id === item.request_id);
    state.known.set(id, request.num_prompt_tokens);
  }
  return trace.steps.map((step) => {
    advance(trace, state, step);
    return snapshot(state, step);
  });
}

function advance(trace, state, step) {
  for (const id of step.preempted) {
    state.computed.set(id, 0);
    state.lost.add(id);
  }
  for (const item of step.admitted) {
    state.computed.set(item.seq_id, item.num_cached_tokens);
    if (trace.sequences.has(item.forked_from)) state.known.set(item.seq_id, state.known.get(item.forked_from));
    state.lost.delete(item.seq_id);
  }
  for (const event of step.block_events) applyBlock(trace, state, step.index, event);
  for (const part of step.slices) {
    state.computed.set(part.seq_id, part.start + part.num_tokens);
    state.known.set(part.seq_id, part.num_known_tokens + part.token_ids.length);
  }
  for (const item of step.finished) {
    state.finished.set(item.seq_id, item.reason);
    state.lost.delete(item.seq_id);
  }
}

function applyBlock(trace, state, index, { kind, block, seq_id: id, source }) {
  const { owners, tables, cached } = state;
  const wrong = (why) => fail(`Step ${index}: ${kind} of block ${block}, but ${why}.`);
  if (hasBlocks(trace) && block >= trace.info.num_blocks) wrong(`there are ${trace.info.num_blocks}`);
  const own = owners.get(block) ?? [];
  const table = tables.get(id) ?? [];
  const leave = (from) => {
    const left = (owners.get(from) ?? []).filter((other) => other !== id);
    if (left.length) owners.set(from, left);
    else owners.delete(from);
  };
  if (kind === "evict") {
    if (own.length || !cached.has(block)) wrong("it is owned, or not cached");
    cached.delete(block);
  } else if (kind === "cache") {
    if (!own.includes(id)) wrong(`sequence ${id} does not own it`);
    cached.add(block);
  } else if (kind === "free") {
    if (!own.includes(id)) wrong(`sequence ${id} does not own it`);
    leave(block);
    tables.set(id, table.filter((other) => other !== block));
  } else {
    if (own.includes(id)) wrong(`sequence ${id} owns it already`);
    if (["alloc", "copy"].includes(kind) && own.length) wrong("it is not free");
    if (kind === "share" && !own.length) wrong("nobody owns it");
    if (kind === "hit" && !cached.has(block)) wrong("its content is not cached");
    owners.set(block, [...own, id]);
    if (kind === "copy" && table.includes(source)) {
      leave(source);
      tables.set(id, table.map((other) => (other === source ? block : other)));
    } else tables.set(id, [...table, block]);
  }
}

function snapshot(state, step) {
  const gone = new Set([...step.preempted, ...step.finished.map((item) => item.seq_id)]);
  const begun = step.admitted.map((item) => item.seq_id);
  const left = new Set([...begun, ...step.finished.map((item) => item.seq_id)]);
  const waiting = [...step.preempted, ...step.waiting].filter((id) => !left.has(id));
  return {
    step,
    running: [...step.running, ...begun].filter((id) => !gone.has(id)),
    waiting: waiting.filter((id) => !state.lost.has(id)),
    preempted: waiting.filter((id) => state.lost.has(id)),
    finished: [...state.finished.keys()],
    reasons: new Map(state.finished),
    computed: new Map(state.computed),
    known: new Map(state.known),
    owners: new Map(state.owners),
    tables: new Map(state.tables),
    cached: new Set(state.cached),
  };
}

/** Share of each owned block that holds tokens, 0 to 1. */
export function filled(trace, frame) {
  const size = trace.info.block_size;
  const fill = new Map();
  for (const [id, table] of frame.tables)
    table.forEach((block, at) => {
      const tokens = Math.min(Math.max((frame.computed.get(id) ?? 0) - at * size, 0), size);
      fill.set(block, Math.max(fill.get(block) ?? 0, tokens / size));
    });
  return fill;
}

// What the player asks before a marked step, and the answer, both from the trace. The twin of tools/scenarios/questions.py,
// which `make site-test` compares with this for every mark of every scenario.

import { nameOf, tokensOf } from "./trace.js";

const NOBODY = "none";

/** { ask, choices, answer, rule } of a mark { step, kind, about }. */
export function question(trace, mark) {
  const step = trace.steps[mark.step];
  const after = trace.frames[mark.step];
  const before = trace.frames[mark.step - 1];
  const number = (ask, answer, rule) => ({ ask, choices: [], answer: String(answer), rule });
  switch (mark.kind) {
    case "admitted":
      return number("How many sequences begin to run in the next step?", step.admitted.length, "admit");
    case "step-tokens":
      return number("How many tokens does the next step compute?", tokensOf(step), "compute");
    case "copies": {
      const copies = step.block_events.filter((event) => event.kind === "copy").length;
      return number("How many blocks does the next step copy?", copies, "copy");
    }
    case "owned-blocks":
      return number("How many blocks have an owner after the next step?", after.owners.size, "alloc");
    case "tokens": {
      const part = step.slices.find((item) => item.seq_id === mark.about);
      const ask = `How many tokens of request ${nameOf(trace, mark.about)} does the next step compute?`;
      return number(ask, part?.num_tokens ?? 0, "compute");
    }
    case "hits": {
      const begun = step.admitted.find((item) => item.seq_id === mark.about);
      const { num_known_tokens: known } = step.slices.find((item) => item.seq_id === mark.about);
      const ask =
        `Request ${nameOf(trace, mark.about)} begins in the next step, with ${known} known tokens. ` +
        "How many of them are found in the cache?";
      return number(ask, begun.num_cached_tokens, "hit");
    }
    case "preempted":
      return {
        ask: "Which request is preempted in the next step?",
        choices: [...step.running.map((id) => nameOf(trace, id)), NOBODY],
        answer: step.preempted.length ? nameOf(trace, step.preempted[0]) : NOBODY,
        rule: "preempt",
      };
    case "evicted": {
      const free = [...before.cached].filter((block) => !before.owners.has(block)).sort((a, b) => a - b);
      const gone = step.block_events.find((event) => event.kind === "evict");
      return {
        ask: "Which block loses its content in the next step?",
        choices: [...free.map(String), NOBODY],
        answer: gone ? String(gone.block) : NOBODY,
        rule: "evict",
      };
    }
    default:
      throw new Error(`no question of kind ${mark.kind}`);
  }
}

// <trace-player data-player='{…}'>: steps one trace or two together, and asks at marked steps. tools/docs_build/players.py
// writes the element; what is inside it is shown until the traces are here, and stays where scripts do not run.

import { answerOf, forget, isQuiet, markKey, remember, score, setQuiet } from "./memory.js";
import { question } from "./questions.js";
import { readTrace, tokensOf } from "./trace.js";
import { h, key, panel } from "./view.js";
import { sentence } from "./words.js";

const STEP_MS = 1100;
const SIDES = ["a", "b"];
const ICONS = {
  first: ["First step", "M6 6h2v12H6zM19 6v12l-9-6z"],
  back: ["Step back", "M15.4 7.4 14 6l-6 6 6 6 1.4-1.4L10.8 12z"],
  play: ["Play", "M8 5v14l11-7z"],
  pause: ["Pause", "M7 5h4v14H7zM13 5h4v14h-4z"],
  next: ["Next step", "M8.6 16.6 13.2 12 8.6 7.4 10 6l6 6-6 6z"],
  last: ["Last step", "M5 6v12l9-6zM16 6h2v12h-2z"],
};

function icon(element, name) {
  const [label, path] = ICONS[name];
  element.setAttribute("aria-label", label);
  element.title = label;
  element.innerHTML = `<svg viewBox="0 0 24 24" aria-hidden="true"><path d="${path}"/></svg>`;
}

const fetched = new Map();

function load(url) {
  if (!fetched.has(url))
    fetched.set(
      url,
      fetch(url).then((answer) => {
        if (!answer.ok) throw new Error(`${url}: ${answer.status}`);
        return answer.text();
      }),
    );
  return fetched.get(url);
}

export class TracePlayer extends HTMLElement {
  #given = null;
  #index = 0;
  #timer = 0;
  #asking = null;
  #parts = {};

  async connectedCallback() {
    document.addEventListener("folo-predictions", this.#onScore);
    if (this.#given || !this.dataset.player) return;
    const given = JSON.parse(this.dataset.player);
    try {
      const texts = await Promise.all(given.sides.map((side) => load(new URL(side.src, document.baseURI).href)));
      const sides = given.sides.map((side, at) => ({ label: side.label, trace: readTrace(texts[at]) }));
      await this.show({ ...given, sides, intro: [...this.querySelectorAll(".tp-title, .tp-sees")] });
    } catch (error) {
      this.append(h("p", { class: "tp-error", role: "alert" }, `The player cannot start: ${error.message}`));
    }
  }

  disconnectedCallback() {
    this.#stop();
    document.removeEventListener("folo-predictions", this.#onScore);
  }

  /** Play traces: { id, sides: [{ label, trace }], start, marks, rules, intro }. */
  async show(given) {
    const rules = new URL(given.rules, document.baseURI);
    this.#given = { ...given, rules: JSON.parse(await load(rules.href)), root: new URL("..", rules) };
    this.#index = Math.min(given.start, this.#last);
    this.#build();
    this.#draw();
    this.dataset.ready = "";
  }

  get #last() {
    return Math.max(...this.#given.sides.map((side) => side.trace.steps.length)) - 1;
  }

  #build() {
    const button = (name, action) => {
      const element = h("button", { type: "button", class: `tp-button tp-${name}`, onclick: action });
      icon(element, name);
      return element;
    };
    const parts = {
      first: button("first", () => this.#go(0)),
      back: button("back", () => this.#go(this.#index - 1)),
      play: button("play", () => (this.#timer ? this.#stop() : this.#play())),
      next: button("next", () => this.#go(this.#index + 1)),
      last: button("last", () => this.#go(this.#last)),
      slider: h("input", { type: "range", min: 0, max: this.#last, "aria-label": "Step", oninput: () => this.#go(Number(parts.slider.value)) }),
      count: h("output", { class: "tp-count" }),
      ask: h("div", { class: "tp-ask", hidden: true }),
      score: h("div", { class: "tp-score" }),
      said: h("p", { class: "tp-said", role: "status", "aria-live": "polite" }),
      sides: this.#given.sides.map((side) => h("section", { class: "tp-side", "aria-label": side.label })),
    };
    this.#parts = parts;
    const buttons = h("div", { class: "tp-buttons" }, parts.first, parts.back, parts.play, parts.next, parts.last);
    const controls = h("div", { class: "tp-controls" }, buttons, parts.slider, parts.count);
    const group = { class: "tp-dock", role: "group", "aria-label": "Player" };
    this.replaceChildren(
      ...this.#given.intro,
      h("div", group, controls, parts.ask),
      parts.said,
      h("div", { class: `tp-sides tp-sides-${parts.sides.length}` }, ...parts.sides),
      key(this.#given.sides.map((side) => side.trace)),
      parts.score,
    );
    this.addEventListener("keydown", this.#onKey);
    this.#onScore();
  }

  #onKey = (event) => {
    const field = event.target.matches("input:not([type=range])");
    if (field || event.altKey || event.ctrlKey || event.metaKey) return;
    const to = { ArrowLeft: this.#index - 1, ArrowRight: this.#index + 1, Home: 0, End: this.#last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.#go(to);
  };

  /** Show a step. The next one may be asked about first; a jump is not. */
  #go(to) {
    const index = Math.min(Math.max(to, 0), this.#last);
    if (index !== this.#index + 1) this.#stop();
    const mark = index === this.#index + 1 ? this.#openMark(index) : null;
    if (mark) this.#ask(mark);
    else this.#reveal(index);
  }

  #reveal(index) {
    this.#index = index;
    this.#asking = null;
    this.#parts.ask.hidden = true;
    this.#parts.ask.replaceChildren();
    if (index === this.#last) this.#stop();
    this.#draw();
  }

  #openMark(step) {
    if (isQuiet()) return null;
    const open = (mark) => mark.step === step && !answerOf(markKey(this.#given.id, mark));
    return this.#given.marks.find(open) ?? null;
  }

  #play() {
    if (this.#index === this.#last) this.#reveal(0);
    this.#timer = setInterval(() => this.#go(this.#index + 1), STEP_MS);
    icon(this.#parts.play, "pause");
  }

  #stop() {
    clearInterval(this.#timer);
    this.#timer = 0;
    if (this.#parts.play) icon(this.#parts.play, "play");
  }

  #ruleOf = (trace, kind) => {
    const rule = this.#given.rules[trace.info.stage]?.[kind];
    return rule && { ...rule, href: new URL(rule.href, this.#given.root).href };
  };

  #draw() {
    const { sides } = this.#given;
    const { first, back, next, last, slider, count, said } = this.#parts;
    const steps = this.#last + 1;
    const heights = sides.flatMap(({ trace }) => trace.steps.map((step) => tokensOf(step) + step.num_padding_tokens));
    const budgets = sides.map(({ trace }) => trace.info.config?.max_num_batched_tokens ?? 0);
    const highest = Math.max(1, ...heights);
    const top = Math.max(highest, ...budgets.filter((budget) => budget <= 1.5 * highest));
    this.dataset.step = this.#index;
    slider.value = this.#index;
    slider.setAttribute("aria-valuetext", `step ${this.#index} of ${this.#last}`);
    count.value = `step ${this.#index} of ${this.#last}`;
    first.disabled = back.disabled = this.#index === 0;
    next.disabled = last.disabled = this.#index === this.#last;
    sides.forEach(({ trace, label }, at) => {
      const about = { trace, label, index: this.#index, steps, top, ruleOf: this.#ruleOf };
      this.#parts.sides[at].replaceChildren(...panel(about));
    });
    const sentences = sides.map(({ trace, label }) => {
      const frame = trace.frames[this.#index];
      const text = frame ? sentence(trace, frame) : `Done since step ${trace.steps.length - 1}.`;
      return sides.length > 1 ? `${label}. ${text}` : text;
    });
    said.replaceChildren(...sentences.map((text) => h("span", {}, text)));
  }

  #ask(mark) {
    this.#stop();
    this.#parts.slider.value = this.#index;
    if (this.#asking === mark) return;
    this.#asking = mark;
    const side = this.#given.sides[SIDES.indexOf(mark.side)];
    const asked = question(side.trace, mark);
    const check = (value) => this.#answer(mark, asked, value);
    const skip = h("button", { type: "button", class: "tp-text tp-skip", onclick: () => this.#answer(mark, asked, null) }, "Skip");
    const where = this.#given.sides.length > 1 ? `${side.label}: ` : "";
    const legend = h("p", { class: "tp-question" }, h("b", {}, "Predict. "), where, asked.ask);
    let fields;
    if (asked.choices.length) {
      fields = asked.choices.map((choice) => h("button", { type: "button", class: "tp-text tp-choice", onclick: () => check(choice) }, choice));
    } else {
      const input = h("input", { type: "number", min: 0, step: 1, required: true, inputmode: "numeric", "aria-label": asked.ask });
      const submit = (event) => {
        event.preventDefault();
        check(String(Number(input.value)));
      };
      fields = [h("form", { class: "tp-form", onsubmit: submit }, input, h("button", { class: "tp-text tp-check" }, "Check"))];
    }
    this.#parts.ask.replaceChildren(legend, h("div", { class: "tp-answers" }, ...fields, skip));
    this.#parts.ask.hidden = false;
    this.#parts.ask.querySelector("input, button").focus({ preventScroll: true });
  }

  #answer(mark, asked, value) {
    const outcome = value === null ? "skipped" : value === asked.answer ? "right" : "wrong";
    remember(markKey(this.#given.id, mark), outcome);
    this.#reveal(mark.step);
    const { trace } = this.#given.sides[SIDES.indexOf(mark.side)];
    const rule = this.#ruleOf(trace, asked.rule);
    const text = { right: `Right: ${asked.answer}.`, wrong: `No: the answer is ${asked.answer}, not ${value}.`, skipped: `The answer is ${asked.answer}.` }[outcome];
    const why = outcome !== "right" && rule ? [" The rule is ", h("a", { href: rule.href }, rule.symbol), ` (${rule.place}).`] : [];
    this.#parts.ask.replaceChildren(h("p", { class: `tp-feedback tp-${outcome}`, role: "status" }, text, ...why));
    this.#parts.ask.hidden = false;
    const { next, back } = this.#parts;
    (next.disabled ? back : next).focus({ preventScroll: true });
  }

  #onScore = () => {
    if (!this.#parts.score || !this.#given.marks.length) return;
    const { id, marks } = this.#given;
    const mine = score(id);
    const answered = marks.filter((mark) => answerOf(markKey(id, mark))).length;
    const text = answered
      ? `Your predictions here: ${mine.right} right, ${mine.wrong} wrong, ${mine.skipped} skipped of ${marks.length}.`
      : `${marks.length} predictions to make.`;
    const total = score();
    const all = `On the whole site: ${total.right} right of ${total.right + total.wrong + total.skipped}.`;
    const box = h("input", { type: "checkbox", onchange: () => setQuiet(!box.checked) });
    box.checked = !isQuiet();
    this.#parts.score.replaceChildren(
      h("span", { class: "tp-tally", title: all }, text),
      h("label", { class: "tp-toggle" }, box, "Ask me"),
      ...(answered ? [h("button", { type: "button", class: "tp-text tp-again", onclick: () => this.#again() }, "Ask again")] : []),
    );
  };

  #again() {
    forget(this.#given.id);
    this.#reveal(Math.min(this.#given.start, this.#last));
  }
}

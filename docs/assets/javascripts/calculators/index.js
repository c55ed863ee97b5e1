// <folo-calculator name="…" data-facts="…">: inputs, an answer, a table, a chart. What the element holds before is the
// table for readers without scripts; it stays below, folded.

import { CARDS } from "./cards.js";
import { draw, legend } from "./chart.js";

let made = 0;

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

class FoloCalculator extends HTMLElement {
  connectedCallback() {
    if (this.card) return;
    this.name = this.getAttribute("name");
    this.card = CARDS[this.name];
    this.facts = JSON.parse(this.dataset.facts);
    this.stem = `calc-${(made += 1)}`;
    this.syncs = [];
    this.values = Object.fromEntries(this.card.fields.map((field) => [field.id, this.fallback(field)]));
    this.read();
    const table = make("details", { class: "calc-static" }, make("summary", {}, "Values at the defaults, as a table"));
    table.append(...this.childNodes);
    this.answer = make("p", { class: "calc-answer", role: "status" });
    this.rows = make("dl", { class: "calc-rows" });
    this.picture = make("div", { class: "calc-chart" });
    const inputs = make("div", { class: "calc-inputs" }, ...this.card.fields.map((field) => this.input(field)));
    const reset = make("button", { type: "button", class: "calc-reset" }, "Back to the defaults");
    reset.addEventListener("click", () => this.reset());
    inputs.append(reset);
    const out = make("div", { class: "calc-out" }, this.answer, this.picture);
    this.append(make("div", { class: "calc-frame" }, inputs, out, this.rows), table);
    new ResizeObserver(() => this.draw()).observe(this.picture);
    this.show();
  }

  options(field) {
    return field.kind === "model" ? this.facts.models : this.facts.devices;
  }

  fallback(field) {
    return field.kind === "slider" ? field.value : Object.keys(this.options(field))[field.kind === "device" ? this.facts.device : 0];
  }

  // The address carries what differs from the defaults, so that a link leads to the same numbers.
  read() {
    const asked = new URLSearchParams(location.search);
    for (const field of this.card.fields) {
      const text = asked.get(`${this.name}.${field.id}`);
      if (text === null) continue;
      if (field.kind !== "slider" && text in this.options(field)) this.values[field.id] = text;
      if (field.kind === "slider" && field.stops.includes(Number(text))) this.values[field.id] = Number(text);
    }
  }

  write() {
    const address = new URL(location.href);
    for (const field of this.card.fields) {
      const key = `${this.name}.${field.id}`;
      if (this.values[field.id] === this.fallback(field)) address.searchParams.delete(key);
      else address.searchParams.set(key, this.values[field.id]);
    }
    history.replaceState(history.state, "", address);
  }

  input(field) {
    const id = `${this.stem}-${field.id}`;
    const label = make("label", { for: id }, field.label);
    if (field.kind !== "slider") {
      const select = make("select", { id });
      for (const [key, item] of Object.entries(this.options(field))) select.append(make("option", { value: key }, item.name));
      select.value = this.values[field.id];
      select.addEventListener("change", () => this.set(field, select.value));
      this.syncs.push(() => (select.value = this.values[field.id]));
      return make("div", { class: "calc-field" }, label, select);
    }
    const slider = make("input", { id, type: "range", min: 0, max: field.stops.length - 1, step: 1 });
    const shown = make("output", { for: id });
    const sync = () => {
      slider.value = field.stops.indexOf(this.values[field.id]);
      shown.textContent = field.shown(this.values[field.id]);
      slider.setAttribute("aria-valuetext", shown.textContent);
    };
    sync();
    slider.addEventListener("input", () => {
      this.set(field, field.stops[Number(slider.value)]);
      sync();
    });
    this.syncs.push(sync);
    return make("div", { class: "calc-field" }, make("div", { class: "calc-head" }, label, shown), slider);
  }

  set(field, value) {
    this.values[field.id] = value;
    this.write();
    this.show();
  }

  reset() {
    for (const field of this.card.fields) this.values[field.id] = this.fallback(field);
    for (const sync of this.syncs) sync();
    this.write();
    this.show();
  }

  show() {
    const given = { ...this.values };
    for (const field of this.card.fields) {
      if (field.kind !== "slider") given[field.id] = this.options(field)[this.values[field.id]];
    }
    const { answer, rows, chart } = this.card.compute(given);
    this.answer.textContent = answer;
    this.rows.replaceChildren(
      ...rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))),
    );
    this.chart = chart;
    this.measured = this.facts.measured.filter(
      (point) => point.model === this.values.model && (!point.device || point.device === this.values.device),
    );
    this.draw();
  }

  draw() {
    if (!this.chart) return;
    const width = Math.max(260, Math.floor(this.picture.clientWidth));
    this.picture.replaceChildren(
      draw(this.chart, this.measured, width, `Chart: ${this.answer.textContent}`),
      legend(this.chart, this.measured),
    );
  }
}

customElements.define("folo-calculator", FoloCalculator);

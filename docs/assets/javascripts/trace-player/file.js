// <trace-file data-rules="…">: opens one or two trace files of the reader's own. They are read here and sent nowhere.

import { TracePlayer } from "./player.js";
import { readTrace } from "./trace.js";
import { h } from "./view.js";

export class TraceFile extends HTMLElement {
  #player = null;

  connectedCallback() {
    const input = h("input", { type: "file", accept: ".json,application/json", multiple: true });
    const error = h("p", { class: "tp-error", role: "alert", hidden: true });
    input.addEventListener("change", () => this.#open([...input.files], error));
    this.replaceChildren(h("label", { class: "tp-open" }, h("span", {}, "Trace files"), input), error);
  }

  async #open(files, error) {
    if (!files.length) return;
    this.#player?.remove();
    error.hidden = true;
    try {
      if (files.length > 2) throw new Error("Open one file or two.");
      const sides = [];
      for (const file of files) sides.push(await this.#read(file));
      this.#player = new TracePlayer();
      this.append(this.#player);
      await this.#player.show({ id: "own", sides, start: 0, marks: [], rules: this.dataset.rules, intro: [] });
    } catch (problem) {
      this.#player?.remove();
      error.textContent = problem.message;
      error.hidden = false;
    }
  }

  async #read(file) {
    try {
      const trace = readTrace(await file.text());
      return { label: `${file.name} (${trace.info.stage})`, trace };
    } catch (problem) {
      throw new Error(`${file.name}: ${problem.message}`);
    }
  }
}

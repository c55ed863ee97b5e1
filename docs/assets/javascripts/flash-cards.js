// <flash-cards list="ID">: deals the folded questions of a list one by one.
//
// The questions are the <details data-question data-stage data-theme data-level> of that list, in their order. What was
// known is kept in localStorage, by question id. Without JavaScript the list stays as it is.
(() => {
  const KEY = "folovllm.flash-cards";
  const KNOWN = "known";
  const AGAIN = "again";

  // localStorage may be full, forbidden, or hold what an older page wrote; then the cards start afresh.
  function loadGrades() {
    try {
      const stored = JSON.parse(localStorage.getItem(KEY));
      return new Map(Object.entries(stored.grades).filter(([, grade]) => grade === KNOWN || grade === AGAIN));
    } catch {
      return new Map();
    }
  }

  function saveGrades(grades) {
    try {
      localStorage.setItem(KEY, JSON.stringify({ version: 1, grades: Object.fromEntries(grades) }));
    } catch {
      // The session goes on without memory.
    }
  }

  function element(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  function contentOf(details) {
    const body = element("div");
    for (const node of details.childNodes) if (node.nodeName !== "SUMMARY") body.append(node.cloneNode(true));
    for (const node of body.querySelectorAll("[id]")) node.removeAttribute("id");
    return body;
  }

  class FlashCards extends HTMLElement {
    connectedCallback() {
      const list = document.getElementById(this.getAttribute("list"));
      if (!list || this.cards) return;
      this.cards = [...list.querySelectorAll("details[data-question]")].map((details) => ({
        id: details.dataset.question,
        stage: details.dataset.stage,
        theme: details.dataset.theme,
        details,
      }));
      this.grades = loadGrades();
      this.filters = { stage: "", theme: "", show: "open" };
      const asked = new URLSearchParams(location.search);
      for (const name of ["stage", "theme"]) {
        if (this.cards.some((card) => card[name] === asked.get(name))) this.filters[name] = asked.get(name);
      }
      this.build();
      list.hidden = true;
      this.addEventListener("keydown", (event) => this.onKey(event));
      this.deal();
    }

    build() {
      const button = (action, text, run) => {
        const made = element("button", { type: "button", textContent: text, onclick: run });
        made.dataset.action = action;
        return made;
      };
      this.buttons = {
        previous: button("previous", "←", () => this.move(-1)),
        flip: button("flip", "Show answer", () => this.flip()),
        again: button("again", "Again", () => this.grade(AGAIN)),
        known: button("known", "Known", () => this.grade(KNOWN)),
        next: button("next", "→", () => this.move(1)),
        forget: button("forget", "Forget progress", () => this.forget()),
      };
      this.buttons.previous.setAttribute("aria-label", "Previous card");
      this.buttons.next.setAttribute("aria-label", "Next card");
      this.question = element("div", { className: "fc-question" });
      this.answer = element("div", { className: "fc-answer", hidden: true });
      this.card = element("div", { className: "fc-card", tabIndex: 0 }, this.question, this.answer);
      this.card.setAttribute("role", "group");
      this.card.setAttribute("aria-roledescription", "flash card");
      this.card.addEventListener("click", (event) => {
        if (!event.target.closest("a, button") && !getSelection().toString() && !this.flipped) this.flip();
      });
      this.bar = element("progress", { max: 1, value: 0 });
      this.bar.setAttribute("aria-label", "Known cards");
      this.status = element("p", { className: "fc-status" });
      this.status.setAttribute("role", "status");
      const { previous, flip, again, known, next, forget } = this.buttons;
      this.append(
        element("div", { className: "fc-filters" }, ...this.selects()),
        this.card,
        element("div", { className: "fc-actions" }, previous, flip, again, known, next),
        element("div", { className: "fc-foot" }, this.status, this.bar, forget),
        element("p", {
          className: "fc-keys",
          innerHTML:
            "On the card: <kbd>Space</kbd> turns it, <kbd>K</kbd> known, <kbd>A</kbd> again, <kbd>←</kbd> <kbd>→</kbd> move.",
        }),
      );
    }

    selects() {
      const values = (name) => [...new Set(this.cards.map((card) => card[name]))];
      const options = {
        stage: [["", "all stages"], ...values("stage").map((value) => [value, value.replace(/^m/, "M")])],
        theme: [["", "all themes"], ...values("theme").sort().map((value) => [value, value])],
        show: [["open", "not yet known"], [AGAIN, "marked again"], ["all", "all"]],
      };
      return Object.entries(options).map(([name, pairs]) => {
        const select = element("select", {}, ...pairs.map(([value, text]) => new Option(text, value)));
        select.dataset.filter = name;
        select.value = this.filters[name];
        select.onchange = () => {
          this.filters[name] = select.value;
          this.deal();
        };
        return element("label", {}, element("span", { textContent: name }), select);
      });
    }

    matching() {
      const { stage, theme } = this.filters;
      return this.cards.filter((card) => (!stage || card.stage === stage) && (!theme || card.theme === theme));
    }

    // The deck is fixed when it is dealt: a card that becomes known leaves it, one to see again goes to its end.
    deal() {
      const { show } = this.filters;
      this.deck = this.matching().filter((card) => {
        const grade = this.grades.get(card.id);
        return show === "all" || (show === AGAIN ? grade === AGAIN : grade !== KNOWN);
      });
      this.place = 0;
      this.show();
    }

    show() {
      const card = this.deck[this.place];
      this.flipped = false;
      this.answer.hidden = true;
      this.answer.replaceChildren();
      this.question.replaceChildren();
      if (card) {
        for (const node of card.details.querySelector("summary").childNodes) this.question.append(node.cloneNode(true));
      } else {
        const all = this.matching();
        const text = all.length ? "No card is left in this deck. Show all of them, or choose another." : "No card matches.";
        this.question.append(element("p", { textContent: text }));
      }
      this.card.dataset.card = card ? card.id : "";
      this.update();
    }

    update() {
      const card = this.deck[this.place];
      const { previous, flip, again, known, next } = this.buttons;
      this.card.dataset.side = this.flipped ? "back" : "front";
      this.card.dataset.grade = (card && this.grades.get(card.id)) || "";
      this.card.setAttribute("aria-label", card ? `Card ${this.place + 1} of ${this.deck.length}` : "No card");
      flip.hidden = this.flipped;
      again.hidden = known.hidden = !this.flipped;
      flip.disabled = !card;
      previous.disabled = next.disabled = this.deck.length < 2;
      const all = this.matching();
      const done = all.filter((each) => this.grades.get(each.id) === KNOWN).length;
      const where = card ? `Card ${this.place + 1} of ${this.deck.length} · ` : "";
      this.status.textContent = `${where}${done} of ${all.length} known`;
      this.status.dataset.known = done;
      this.status.dataset.total = all.length;
      this.bar.value = all.length ? done / all.length : 0;
      this.resetForget();
    }

    flip() {
      const card = this.deck[this.place];
      if (!card || this.flipped) return;
      this.flipped = true;
      this.answer.replaceChildren(contentOf(card.details));
      this.answer.hidden = false;
      this.update();
      this.card.focus({ preventScroll: true });
    }

    grade(grade) {
      const card = this.deck[this.place];
      if (!card || !this.flipped) return;
      this.grades.set(card.id, grade);
      saveGrades(this.grades);
      const gone = this.filters.show === AGAIN ? grade === KNOWN : this.filters.show === "open" && grade === KNOWN;
      if (gone || grade === AGAIN) this.deck.splice(this.place, 1);
      if (grade === AGAIN) this.deck.push(card);
      if (!gone && grade === KNOWN) this.place += 1;
      if (this.place >= this.deck.length) this.place = 0;
      this.show();
      this.focusCard();
    }

    move(by) {
      if (this.deck.length < 2) return;
      this.place = (this.place + by + this.deck.length) % this.deck.length;
      this.show();
    }

    // Two presses: the first asks.
    forget() {
      const { forget } = this.buttons;
      if (!forget.dataset.armed) {
        forget.dataset.armed = "yes";
        forget.textContent = "Really forget all?";
        return;
      }
      this.grades.clear();
      saveGrades(this.grades);
      this.deal();
    }

    resetForget() {
      const { forget } = this.buttons;
      delete forget.dataset.armed;
      forget.textContent = "Forget progress";
    }

    focusCard() {
      this.card.focus({ preventScroll: true });
      if (this.card.getBoundingClientRect().top < 0) this.scrollIntoView({ block: "start" });
    }

    onKey(event) {
      if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select, a")) return;
      const onButton = event.target.closest("button");
      const run = {
        " ": onButton ? null : () => this.flip(),
        Enter: onButton ? null : () => this.flip(),
        ArrowLeft: () => this.move(-1),
        ArrowRight: () => this.move(1),
        k: () => this.grade(KNOWN),
        a: () => this.grade(AGAIN),
      }[event.key.length === 1 ? event.key.toLowerCase() : event.key];
      if (!run) return;
      event.preventDefault();
      event.stopPropagation();
      run();
    }
  }

  function define() {
    if (!customElements.get("flash-cards")) customElements.define("flash-cards", FlashCards);
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", define);
  else define();
})();

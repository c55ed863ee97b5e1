// What the reader predicted, kept in this browser only: { "scenario side step kind": "right" | "wrong" | "skipped" }.

const KEY = "folo.predictions";
const QUIET = "folo.predictions.off";

function stored(key, fallback) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? fallback;
  } catch {
    return fallback; // storage is off, or holds something else
  }
}

function store(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
  } catch {
    // storage is off: the answer counts until the page is left
  }
  document.dispatchEvent(new CustomEvent("folo-predictions"));
}

let answers = stored(KEY, {});

export const markKey = (scenario, mark) => [scenario, mark.side, mark.step, mark.kind, mark.about ?? ""].join(" ").trim();
export const answerOf = (key) => answers[key];
export const isQuiet = () => stored(QUIET, false);
export const setQuiet = (quiet) => store(QUIET, quiet);

export function remember(key, outcome) {
  answers = { ...answers, [key]: outcome };
  store(KEY, answers);
}

/** Forget the answers of one scenario, so that it asks again. */
export function forget(scenario) {
  answers = Object.fromEntries(Object.entries(answers).filter(([key]) => key.split(" ")[0] !== scenario));
  store(KEY, answers);
}

/** { right, wrong, skipped } over one scenario, or over all. */
export function score(scenario) {
  const total = { right: 0, wrong: 0, skipped: 0 };
  for (const [key, outcome] of Object.entries(answers))
    if ((!scenario || key.split(" ")[0] === scenario) && outcome in total) total[outcome] += 1;
  return total;
}

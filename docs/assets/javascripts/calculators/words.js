// Numbers as text, in the site's units. The space before a unit does not break.

const NBSP = "\u00a0";

export const number = (value, digits = 3) =>
  value.toLocaleString("en-US", value >= 1000 ? { maximumFractionDigits: 0 } : { maximumSignificantDigits: digits });

export const count = (value) => Math.round(value).toLocaleString("en-US");

export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return number(value) + NBSP + units[unit];
}

export const gigabytes = (value) => number(value / 1e9) + NBSP + "GB";

export function seconds(value) {
  if (value >= 1) return number(value) + NBSP + "s";
  return value >= 1e-3 ? number(value * 1e3) + NBSP + "ms" : number(value * 1e6) + NBSP + "µs";
}

export const percent = (value) => (value * 100).toFixed(1) + NBSP + "%";

export const times = (value) => number(value) + NBSP + "×";

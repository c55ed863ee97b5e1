// Numbers as text, in the site's units.

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
  return `${number(value)} ${units[unit]}`;
}

export const gigabytes = (value) => `${number(value / 1e9)} GB`;

export function seconds(value) {
  if (value >= 1) return `${number(value)} s`;
  return value >= 1e-3 ? `${number(value * 1e3)} ms` : `${number(value * 1e6)} µs`;
}

export const percent = (value) => `${(value * 100).toFixed(1)} %`;

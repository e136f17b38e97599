// Numbers for people.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export const NONE = "–";

export const count = (number) => (Math.abs(number) < 1e6 ? whole.format(number) : short.format(number));

export const share = (part) => `${Math.round(100 * part)} %`;

export function bytes(number) {
  let rest = number;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (rest < 1024) return `${unit === "B" ? rest : rest.toFixed(1)} ${unit}`;
    rest /= 1024;
  }
  return `${rest.toFixed(1)} TiB`;
}

export function seconds(number) {
  if (number < 0) return `−${seconds(-number)}`;
  if (number < 1) return `${Math.round(1000 * number)} ms`;
  if (number < 60) return `${number.toFixed(1)} s`;
  if (number < 3600) return `${Math.floor(number / 60)} min ${Math.floor(number % 60)} s`;
  if (number < 86400) return `${Math.floor(number / 3600)} h ${Math.floor((number % 3600) / 60)} min`;
  return `${whole.format(Math.floor(number / 86400))} days`;
}

export const time = (milliseconds) => clock.format(new Date(milliseconds));

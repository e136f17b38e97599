// The recent course of one number, as a line.

import { setAttribute, svg } from "../dom.js";
import { LENGTH } from "../history.js";

const [WIDTH, HEIGHT] = [120, 24];

export class Sparkline {
  constructor() {
    this.line = svg("polyline", { class: "spark" });
    this.node = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, width: WIDTH, height: HEIGHT, "aria-hidden": "true" }, this.line);
  }

  update(series) {
    setAttribute(this.line, "points", pointsOf(series));
  }
}

/** The latest at the right; the highest at the top. */
export function pointsOf(series) {
  const highest = Math.max(...series, 1e-9);
  const begin = LENGTH - series.length;
  return series
    .map((value, at) => `${(((begin + at) * WIDTH) / (LENGTH - 1)).toFixed(1)},${(HEIGHT - 2 - (value / highest) * (HEIGHT - 4)).toFixed(1)}`)
    .join(" ");
}

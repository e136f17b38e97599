// What each range of key groups holds of one operator's state, as small bars.

import { bytes, count } from "../format.js";
import { setAttribute, svg } from "../dom.js";

const [WIDTH, HEIGHT] = [128, 24];

export class Histogram {
  constructor() {
    this.bars = svg("path", { class: "groups" });
    this.node = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, width: WIDTH, height: HEIGHT, role: "img" }, this.bars);
    this.update(undefined);
  }

  /** `state`: of the operator, undefined before the first checkpoint. */
  update(state) {
    const groups = state?.key_groups ?? [];
    setAttribute(this.bars, "d", barsOf(groups.map(weightIn(state))));
    setAttribute(this.node, "aria-label", told(state, groups));
    this.node.toggleAttribute("hidden", groups.length === 0);
  }
}

const weightIn = (state) => (state?.skew_of === "entries" ? (group) => group.entries : (group) => group.bytes);

/** One outline for all, so that a row costs one element however many bars it has. */
export function barsOf(weights) {
  const highest = Math.max(...weights, 1);
  const width = WIDTH / Math.max(1, weights.length);
  return weights
    .map((weight, at) => {
      const height = weight === 0 ? 0 : Math.max(1, (weight / highest) * HEIGHT);
      return height === 0 ? "" : `M${(at * width).toFixed(1)},${HEIGHT}v${(-height).toFixed(1)}h${(width * 0.8).toFixed(1)}V${HEIGHT}z`;
    })
    .join("");
}

function told(state, groups) {
  if (state === undefined || groups.length === 0 || state.skew === null) return "No state by key groups";
  const weight = weightIn(state);
  const fullest = groups.reduce((most, group) => (weight(group) > weight(most) ? group : most));
  const amount = state.skew_of === "entries" ? `${count(fullest.entries)} keys` : bytes(fullest.bytes);
  return `${count(state.max_parallelism)} key groups, the largest holds ${state.skew.toFixed(2)} times the mean; most lies in groups ${fullest.first} to ${fullest.last}: ${amount}`;
}

// One row for each operator, however many subtasks it has.

import { byId, element, setText } from "../dom.js";
import { NONE, bytes, count, seconds } from "../format.js";
import { Sparkline } from "./sparkline.js";

export class Operators {
  constructor() {
    this.rows = new Map();
    this.state = new Map();
  }

  update(tick, rates) {
    const uids = tick.operators.map((each) => each.uid);
    if (uids.length !== this.rows.size || uids.some((uid) => !this.rows.has(uid))) this.build(tick.operators);
    for (const operator of tick.operators) {
      this.rows.get(operator.uid).update(operator, tick.time_ms, rates.of(operator.uid), this.state.get(operator.uid));
    }
  }

  build(operators) {
    this.rows = new Map(operators.map((operator) => [operator.uid, new Row(operator)]));
    byId("operators").tBodies[0].replaceChildren(...[...this.rows.values()].map((row) => row.node));
  }

  /** Of a whole checkpoint. */
  showState(checkpoint) {
    this.state = stateByOperator(checkpoint.subtasks);
  }
}

/** Bytes of each operator's state, and how unevenly its subtasks share them: the largest over the mean. */
export function stateByOperator(subtasks) {
  const parts = new Map();
  for (const subtask of subtasks) {
    for (const [uid, size] of Object.entries(subtask.operators)) parts.set(uid, [...(parts.get(uid) ?? []), size]);
  }
  return new Map([...parts].map(([uid, sizes]) => [uid, spreadOf(sizes)]));
}

function spreadOf(sizes) {
  const total = sizes.reduce((sum, size) => sum + size, 0);
  const largest = sizes.reduce((most, size) => Math.max(most, size), 0);
  return { bytes: total, skew: total === 0 ? null : (largest * sizes.length) / total };
}

class Row {
  constructor(operator) {
    this.spark = new Sparkline();
    this.rate = element("span", { class: "rate" });
    this.cells = Array.from({ length: 7 }, () => element("td"));
    const name = element("th", { scope: "row", title: operator.name }, `${operator.uid} ×${operator.parallelism}`);
    this.node = element("tr", { "data-uid": operator.uid }, name, element("td", {}, this.spark.node, this.rate), ...this.cells);
  }

  update(operator, now, series, state) {
    this.spark.update(series);
    setText(this.rate, series.length === 0 ? NONE : count(series.at(-1)));
    const watermark = operator.watermark_ms;
    const texts = [
      count(operator.records_in),
      count(operator.records_out),
      watermark === null ? NONE : seconds((now - watermark) / 1000),
      operator.skew_ms === 0 ? NONE : seconds(operator.skew_ms / 1000),
      count(operator.entries),
      state === undefined ? NONE : bytes(state.bytes),
      state === undefined || state.skew === null ? NONE : state.skew.toFixed(2),
    ];
    texts.forEach((text, at) => setText(this.cells[at], text));
  }
}

// One row for each operator, however many subtasks it has.

import { byId, element, setText } from "../dom.js";
import { NONE, bytes, count, seconds } from "../format.js";
import { Histogram } from "./histogram.js";
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

  /** Of the last checkpoint. */
  showState(told) {
    this.state = new Map(told.operators.map((each) => [each.uid, each]));
  }
}

/** Of a source that knows its end. */
const readOf = (progress) => (progress?.total > 0 ? ` ${Math.floor((100 * progress.done) / progress.total)} % read` : "");

const figure = (skew) => (skew === undefined || skew === null ? NONE : skew.toFixed(2));

class Row {
  constructor(operator) {
    this.spark = new Sparkline();
    this.rate = element("span", { class: "rate" });
    this.groups = new Histogram();
    this.cells = Array.from({ length: 8 }, () => element("td"));
    this.groupSkew = element("span", { class: "group-skew" });
    this.cells[7].append(this.groups.node, this.groupSkew);
    this.read = element("span", { class: "read" });
    const name = element("th", { scope: "row", title: operator.name }, `${operator.uid} ×${operator.parallelism}`, this.read);
    this.node = element("tr", { "data-uid": operator.uid }, name, element("td", {}, this.spark.node, this.rate), ...this.cells);
  }

  update(operator, now, series, state) {
    this.spark.update(series);
    setText(this.rate, series.length === 0 ? NONE : count(series.at(-1)));
    setText(this.read, readOf(operator.progress));
    const watermark = operator.watermark_ms;
    const texts = [
      count(operator.records_in),
      count(operator.records_out),
      watermark === null ? NONE : seconds((now - watermark) / 1000),
      operator.skew_ms === 0 ? NONE : seconds(operator.skew_ms / 1000),
      count(operator.entries),
      state === undefined ? NONE : bytes(state.bytes),
      figure(state?.subtask_skew),
    ];
    texts.forEach((text, at) => setText(this.cells[at], text));
    this.groups.update(state);
    setText(this.groupSkew, figure(state?.skew));
  }
}

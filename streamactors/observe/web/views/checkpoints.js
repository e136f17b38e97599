// The course of checkpoints, the latest in a table, and what each subtask did in one of them.

import { byId, element, setText, svg } from "../dom.js";
import { bytes, count, seconds, time } from "../format.js";

const BARS = 50;
const ROWS = 15;
const SLOWEST = 20;
const [WIDTH, HEIGHT] = [600, 80];

export class Checkpoints {
  update(tick) {
    setText(byId("under-way"), tick.under_way.map(sentence).join(" ") || "None is under way.");
    byId("under-way").classList.toggle("stalled", tick.under_way.some(isStalled));
  }

  show(job, told) {
    byId("timeline").replaceChildren(timeline(told));
    const rows = entriesOf(told).reverse().slice(0, ROWS);
    byId("checkpoints").tBodies[0].replaceChildren(...rows.map((entry) => row(entry, () => showDetail(job, entry.id))));
  }
}

const STALLED = 5; // seconds in which nobody has acknowledged it

export const isStalled = (one) => one.quiet_seconds >= STALLED;

export function sentence(one) {
  const what = `${one.kind === "savepoint" ? "Savepoint" : "Checkpoint"} ${one.id} is under way for ${seconds(one.seconds)}`;
  const waits = `${count(one.acknowledged)} have acknowledged, it waits for ${one.waiting_for.join(", ") || "the storage"}`;
  return isStalled(one) ? `${what} and stalled: for ${seconds(one.quiet_seconds)} nobody has acknowledged it; ${waits}.` : `${what}: ${waits}.`;
}

/** Complete and given up ones, the oldest first. */
export function entriesOf({ checkpoints, given_up }) {
  const failed = given_up.map((one) => ({ ...one, failed: true, seconds: 0 }));
  return [...checkpoints, ...failed].sort((one, other) => one.id - other.id);
}

function timeline(told) {
  const entries = entriesOf(told).slice(-BARS);
  const longest = Math.max(1e-6, ...entries.map((entry) => entry.seconds));
  const failed = entries.filter((entry) => entry.failed).length;
  const label = `The last ${entries.length} checkpoints: ${failed} given up, the longest took ${seconds(longest)}`;
  const bars = entries.map((entry, at) => timelineBar(entry, at, longest));
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label }, ...bars);
}

function timelineBar(entry, at, longest) {
  const height = entry.failed ? HEIGHT : Math.max(3, (entry.seconds / longest) * (HEIGHT - 4));
  const kind = entry.failed ? "given-up" : entry.kind;
  const title = svg("title", {}, entry.failed ? `${entry.id}: ${entry.reason}` : `${entry.id}: ${seconds(entry.seconds)}`);
  const width = WIDTH / BARS;
  return svg("rect", { x: at * width + 1, y: HEIGHT - height, width: width - 2, height, class: `checkpoint ${kind}` }, title);
}

function row(entry, open) {
  if (entry.failed) {
    const cells = [entry.id, "given up", time(entry.time_ms)].map((text) => element("td", {}, String(text)));
    return element("tr", { class: "given-up" }, ...cells, element("td", { colspan: 4 }, entry.reason));
  }
  const button = element("button", { type: "button", "aria-label": `Details of checkpoint ${entry.id}` }, String(entry.id));
  button.addEventListener("click", open);
  const sizes = [entry.state_bytes, entry.uploaded_bytes, entry.inflight_bytes].map(bytes);
  const cells = [entry.kind, time(entry.time_ms), seconds(entry.seconds), ...sizes].map((text) => element("td", {}, text));
  return element("tr", { "data-checkpoint": entry.id }, element("td", {}, button), ...cells);
}

async function showDetail(job, id) {
  const place = byId("checkpoint-detail");
  try {
    const detail = await job.get(`checkpoints/${id}`);
    place.replaceChildren(...detailOf(detail));
  } catch (error) {
    place.replaceChildren(element("p", {}, error.message));
  }
  place.focus();
}

function detailOf(detail) {
  const slowest = [...detail.subtasks].sort((one, other) => other.seconds - one.seconds).slice(0, SLOWEST);
  const longest = Math.max(1e-6, ...slowest.map((part) => part.seconds));
  const heads = ["Subtask", "Took", "Alignment", "Synchronous", "Asynchronous", "State", "In flight"];
  const head = element("thead", {}, element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text))));
  const body = element("tbody", {}, ...slowest.map((part) => detailRow(part, longest)));
  const which = detail.subtasks.length > SLOWEST ? `the slowest ${SLOWEST} of ${detail.subtasks.length} subtasks` : "its subtasks";
  const caption = element("caption", {}, `${detail.kind === "savepoint" ? "Savepoint" : "Checkpoint"} ${detail.id}: ${which}`);
  const table = element("table", {}, caption, head, body);
  return [
    element("p", { class: "uri" }, detail.uri),
    element("div", { class: "scrolling", tabindex: 0, role: "region", "aria-label": `Checkpoint ${detail.id}` }, table),
  ];
}

function detailRow(part, longest) {
  const spent = [part.alignment_seconds, part.synchronous_seconds, part.asynchronous_seconds];
  const cells = [...spent.map(seconds), bytes(part.state_bytes), bytes(part.inflight_bytes)];
  const took = element("td", {}, stacked(part, spent, longest), ` ${seconds(part.seconds)}`);
  return element("tr", {}, element("th", { scope: "row" }, part.subtask), took, ...cells.map((text) => element("td", {}, text)));
}

/** Until it began, alignment, synchronous, asynchronous, one after another. */
function stacked(part, spent, longest) {
  const scale = 80 / longest;
  const before = Math.max(0, part.seconds - spent.reduce((sum, each) => sum + each, 0));
  let x = 0;
  const rects = [before, ...spent].map((each, at) => {
    const rect = svg("rect", { x, y: 0, height: 10, width: each * scale, class: ["before", "alignment", "sync", "async"][at] });
    x += each * scale;
    return rect;
  });
  return svg("svg", { viewBox: "0 0 80 10", width: 80, height: 10, "aria-hidden": "true" }, ...rects);
}

// What waits on each input channel of one subtask. It is asked for only while somebody watches.

import { byId, element, setOptions } from "../dom.js";
import { bytes, count, seconds, share } from "../format.js";

const EVERY = 500;
const MOST = 40;

export class Mailbox {
  constructor() {
    this.job = null;
    this.asking = false;
    this.parallelism = new Map();
    this.vertex = byId("mailbox-vertex");
    this.index = byId("mailbox-index");
    this.watched = byId("mailbox-watch");
    this.vertex.addEventListener("change", () => this.chosen());
    for (const control of [this.index, this.watched]) control.addEventListener("change", () => this.ask());
    setInterval(() => this.ask(), EVERY);
  }

  /** The chains that there are: a chain is called by its first operator, so that has its parallelism. */
  update(tick) {
    const of = new Map(tick.operators.map((each) => [each.uid, each.parallelism]));
    this.parallelism = new Map(tick.vertices.map(({ vertex }) => [vertex, of.get(vertex) ?? 1]));
    setOptions(this.vertex, [...this.parallelism.keys()]);
    this.number();
  }

  number() {
    setOptions(this.index, Array.from({ length: this.parallelism.get(this.vertex.value) ?? 0 }, (_, at) => String(at)));
  }

  watch(vertex) {
    this.vertex.value = vertex;
    this.watched.checked = true;
    this.chosen();
    this.vertex.focus();
  }

  chosen() {
    this.number();
    this.ask();
  }

  async ask() {
    if (!this.watched.checked || document.hidden || this.asking || this.job === null || this.index.value === "") return;
    this.asking = true;
    try {
      show(await this.job.subtask(this.vertex.value, Number(this.index.value)));
    } catch (error) {
      byId("mailbox").replaceChildren(element("p", {}, error.message));
    } finally {
      this.asking = false;
    }
  }
}

function show({ subtask, load, channels, under_way: underWay }) {
  const kinds = new Map(underWay.map(({ id, kind }) => [id, kind]));
  const fullest = [...channels].sort((one, other) => weight(other) - weight(one)).slice(0, MOST);
  const rest = channels.length - fullest.length;
  const loads = `busy ${share(load.busy)}, idle ${share(load.idle)}, back-pressured ${share(load.backpressured)}`;
  const told = element("p", {}, `${subtask.id}: ${count(subtask.queued)} of ${count(subtask.capacity)} records wait; ${loads}`);
  const drawn = channels.length === 0 ? element("p", {}, "It has no input channels: it is a source, or does not run.") : listOf(fullest, kinds);
  const more = rest > 0 ? [element("p", {}, `and ${count(rest)} channels with less`)] : [];
  byId("mailbox").replaceChildren(told, ...underWay.map(lineOf), drawn, ...more);
}

const weight = (channel) => (channel.blocked ? 2e9 : 0) + channel.barriers.length * 1e9 + channel.queued;

function lineOf({ id, kind, seconds: since, acknowledged }) {
  const here = acknowledged ? "done here, not yet by all others" : "not done here yet";
  return element("p", { class: "mine" }, `${named(kind)} ${id}, under way for ${seconds(Math.floor(since))}: ${here}`);
}

const named = (kind) => (kind === "savepoint" ? "Savepoint" : "Checkpoint");

const listOf = (channels, kinds) => element("ul", { class: "channels" }, ...channels.map((channel) => channelOf(channel, kinds)));

/** Where a barrier is: one that is aligned waits behind records, one that overtakes does not stay. */
function barrierOf(id, ahead, kinds) {
  const what = kinds.get(id) === "savepoint" ? `savepoint ${id}` : `barrier ${id}`;
  return element("span", { class: "barrier" }, ahead > 0 ? `${what}, behind ${count(ahead)} records` : what);
}

function channelOf(channel, kinds) {
  const from = channel.sender + (channel.tag === null ? "" : ` (${channel.tag})`) + (channel.side === 0 ? "" : ", right side");
  const fill = `${count(channel.queued)} of ${count(channel.capacity)} records, ${bytes(channel.bytes)}`;
  const meter = { min: 0, max: Math.max(1, channel.capacity), value: channel.queued, "aria-label": `fill from ${from}` };
  const barriers = channel.barriers.map((id, at) => barrierOf(id, channel.ahead[at], kinds));
  const held = element("strong", { class: "held" }, "held back until the other barriers come");
  return element(
    "li",
    { class: channel.blocked ? "blocked" : "open" },
    element("span", { class: "sender" }, from),
    element("meter", meter),
    element("span", {}, fill),
    ...barriers,
    channel.blocked ? held : null,
  );
}

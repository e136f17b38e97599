// The chains of the job and how records go from one to the next, coloured by their load.

import { byId, setAttribute, setText, svg } from "../dom.js";
import { count, share } from "../format.js";
import { BOX, chains, curve, place } from "../layout.js";

const MARGIN = 8;
const NARROW = 640;
const SMALLEST = 0.75; // what is wider still is scrolled
const LONGEST = 27;

/** `choose` is called with the uid of a chain that was pressed. */
export class Graph {
  constructor(choose) {
    this.choose = choose;
    this.boxes = new Map();
    this.told = null;
    this.direction = null;
    this.last = null;
    new ResizeObserver(() => this.told !== null && this.directionNow() !== this.direction && this.draw()).observe(byId("graph"));
  }

  show(told) {
    this.told = chains(told);
    this.draw();
  }

  directionNow() {
    return byId("graph").clientWidth < NARROW ? "down" : "right";
  }

  draw() {
    this.direction = this.directionNow();
    const placed = place(this.told, this.direction);
    const at = new Map(placed.boxes.map((box) => [box.uid, box]));
    this.boxes = new Map(placed.boxes.map((box) => [box.uid, new Box(box, this.choose)]));
    const edges = placed.edges.map((edge) => drawnEdge(edge, at.get(edge.from), at.get(edge.to), this.direction));
    const [width, height] = [placed.width + 2 * MARGIN, placed.height + 2 * MARGIN];
    const viewBox = `${-MARGIN} ${-MARGIN} ${width} ${height}`;
    const scale = Math.min(1, Math.max(SMALLEST, byId("graph").clientWidth / width));
    const size = { width: width * scale, height: height * scale };
    const drawn = svg("svg", { viewBox, ...size, role: "group", "aria-label": "Chains of the job" });
    drawn.append(arrow(), ...edges, ...[...this.boxes.values()].map((box) => box.node));
    byId("graph").replaceChildren(drawn);
    if (this.last !== null) this.update(this.last);
  }

  update(tick) {
    this.last = tick;
    for (const load of tick.vertices) this.boxes.get(load.vertex)?.update(load);
  }
}

class Box {
  constructor(box, choose) {
    this.box = box;
    this.load = svg("text", { x: 10, y: 38, class: "load" });
    this.busy = bar("busy", box.height - 8);
    this.pressed = bar("pressed", box.height - 4);
    this.node = svg(
      "g",
      { class: "box calm", role: "button", tabindex: 0, transform: `translate(${box.x},${box.y})`, "data-vertex": box.uid },
      svg("rect", { width: box.width, height: box.height, rx: 6, class: "frame" }),
      svg("text", { x: 10, y: 20, class: "title" }, clipped(box.uid)),
      this.load,
      ...box.steps.map((step, at) => svg("text", { x: 10, y: BOX.head + 4 + BOX.line * at, class: "step" }, clipped(lineOf(step)))),
      this.busy,
      this.pressed,
    );
    this.node.addEventListener("click", () => choose(box.uid));
    this.node.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      choose(box.uid);
    });
    this.tell("no reading yet");
  }

  update(load) {
    const level = load.backpressured >= 0.2 ? "pressed" : load.busy >= 0.8 ? "hot" : load.busy >= 0.3 ? "warm" : "calm";
    setAttribute(this.node, "class", `box ${level}`);
    setAttribute(this.busy, "width", (this.box.width - 2) * clamped(load.busy));
    setAttribute(this.pressed, "width", (this.box.width - 2) * clamped(load.backpressured));
    setText(this.load, `×${this.box.parallelism}  busy ${share(load.busy)}  pressed ${share(load.backpressured)}`);
    const waiting = load.capacity > 0 ? `, ${count(load.queued)} of ${count(load.capacity)} waiting` : "";
    this.tell(`busy ${share(load.busy)}, back-pressured ${share(load.backpressured)}${waiting}`);
  }

  tell(load) {
    setAttribute(this.node, "aria-label", `${this.box.uid}, ${this.box.parallelism} subtasks, ${load}. Show its mailboxes`);
  }
}

const bar = (name, y) => svg("rect", { x: 1, y, height: 4, width: 0, class: `bar ${name}` });
const clamped = (part) => Math.min(1, Math.max(0, part));
const clipped = (text) => (text.length > LONGEST ? `${text.slice(0, LONGEST - 1)}…` : text);
const lineOf = (step) => (step.name === step.uid ? `${step.uid} (${step.kind})` : `${step.uid}: ${step.name}`);

function drawnEdge(edge, from, to, direction) {
  const path = svg("path", { d: curve(from, to, direction), class: "edge", "marker-end": "url(#arrow)" });
  const what = [edge.partitioning, edge.tag].filter((part) => part !== null && part !== undefined).join(", ");
  const x = direction === "down" ? (from.x + from.width / 2 + to.x + to.width / 2) / 2 : (from.x + from.width + to.x) / 2;
  const y = direction === "down" ? (from.y + from.height + to.y) / 2 : (from.y + from.height / 2 + to.y + to.height / 2) / 2;
  const named = svg("text", { x, y: y - 4, class: "edge-name" }, what);
  return svg("g", { role: "img", "aria-label": `${edge.from} to ${edge.to}, ${what}` }, path, named);
}

function arrow() {
  const marker = { id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" };
  return svg("defs", {}, svg("marker", marker, svg("path", { d: "M0,0 L8,4 L0,8 z", class: "arrow" })));
}

// The page: one session, and the views of what it hears. Each reading is drawn once, at the browser's next frame.

import { byId, setOptions, setText } from "./dom.js";
import { Rates } from "./history.js";
import { Session } from "./session.js";
import { askToken, enableButtons, steerable } from "./steering.js";
import { Checkpoints } from "./views/checkpoints.js";
import { showExceptions } from "./views/exceptions.js";
import { Graph } from "./views/graph.js";
import { showJob } from "./views/job.js";
import { Mailbox } from "./views/mailbox.js";
import { Operators } from "./views/operators.js";

/** Asks for something again when its `stamp` has changed, one request at a time, and not more often than `every`. */
class Fresh {
  constructor(every, load) {
    this.every = every;
    this.load = load;
    this.forget();
  }

  forget() {
    this.stamp = null;
    this.asking = false;
    this.next = 0;
  }

  async want(stamp, ...args) {
    if (stamp === this.stamp || this.asking || Date.now() < this.next) return;
    this.asking = true;
    this.next = Date.now() + this.every;
    try {
      await this.load(...args);
      this.stamp = stamp;
    } catch {
      this.stamp = null; // the next reading tries it again, and the session says what is wrong
    } finally {
      this.asking = false;
    }
  }
}

class Page {
  constructor() {
    this.job = null;
    this.run = null;
    this.latest = null;
    this.rates = new Rates();
    this.operators = new Operators();
    this.mailbox = new Mailbox();
    this.graph = new Graph((vertex) => this.mailbox.watch(vertex));
    this.checkpoints = new Checkpoints();
    this.fresh = {
      graph: new Fresh(0, async (job) => this.graph.show(await job.get("graph"))),
      checkpoints: new Fresh(1000, async (job) => this.checkpoints.show(job, await job.get("checkpoints"))),
      state: new Fresh(3000, async (job) => this.operators.showState(await job.get("state"))),
      exceptions: new Fresh(1000, async (job) => showExceptions(await job.get("exceptions"))),
    };
  }

  connection(state, text) {
    document.body.dataset.connection = state;
    setText(byId("connection"), text);
  }

  jobs(names, chosen) {
    setOptions(byId("jobs"), names);
    byId("job-choice").hidden = names.length < 2;
    if (chosen !== null) byId("jobs").value = chosen;
  }

  tokenWanted() {
    return askToken();
  }

  tick(job, tick, first) {
    if (first) this.begin(job, `${job.name}@${tick.job.pid}@${tick.job.started_ms}`);
    this.rates.add(tick);
    if (this.latest === null) requestAnimationFrame(() => this.draw());
    this.latest = tick;
  }

  /** A new connection may lead to another process, with other plans. */
  begin(job, run) {
    if (this.run !== run) this.clear();
    this.run = run;
    this.job = job;
    enableButtons();
    this.mailbox.job = job;
    for (const each of Object.values(this.fresh)) each.forget();
  }

  clear() {
    this.rates = new Rates();
    this.operators.state = new Map();
    byId("checkpoint-detail").replaceChildren();
    byId("mailbox").replaceChildren();
  }

  draw() {
    const [tick, job] = [this.latest, this.job];
    this.latest = null;
    showJob(tick);
    this.graph.update(tick);
    this.operators.update(tick, this.rates);
    this.mailbox.update(tick);
    this.checkpoints.update(tick);
    this.refresh(job, tick);
  }

  refresh(job, tick) {
    const plan = tick.operators.map((each) => `${each.uid}:${each.parallelism}`).join("|");
    const last = tick.job.last_checkpoint;
    this.fresh.graph.want(`${tick.job.restarts}|${plan}`, job);
    this.fresh.checkpoints.want(`${tick.completed}|${tick.failed}`, job);
    this.fresh.exceptions.want(`${tick.exceptions}|${tick.job.restarts}|${tick.job.status}`, job);
    if (last !== null) this.fresh.state.want(last.id, job);
  }
}

const page = new Page();
const session = new Session(page);
byId("jobs").addEventListener("change", (event) => session.choose(event.target.value));
steerable(() => page.job);
session.run();

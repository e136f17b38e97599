// Finds a job, listens to it, and tries again for as long as the page is open. A page that nobody sees listens to nothing.

import { Job, Refused, listJobs } from "./api.js";

const SOONEST = 250;
const LATEST = 4000;
const ENDED = new Set(["finished", "failed", "cancelled"]);

/** `shown` is told: `jobs(names, chosen)`, `tick(job, tick, first)`, `connection(state, text)`; `tokenWanted()` says whether one was given. */
export class Session {
  constructor(shown) {
    this.shown = shown;
    this.chosen = null;
    this.listening = new AbortController();
    document.addEventListener("visibilitychange", () => document.hidden && this.listening.abort());
  }

  choose(name) {
    this.chosen = name;
    this.listening.abort();
  }

  async run() {
    let silent = 0;
    for (;;) {
      await visible();
      silent = (await this.listen()) ? 0 : silent + 1;
      await pause(Math.min(SOONEST * 2 ** silent, LATEST));
    }
  }

  /** Whether there is hope of more at once. */
  async listen() {
    this.listening = new AbortController();
    try {
      const job = await this.find();
      return job === null ? false : await this.follow(job);
    } catch (error) {
      return await this.failed(error);
    }
  }

  async find() {
    const names = (await listJobs()).map((job) => job.name);
    const chosen = names.includes(this.chosen) ? this.chosen : (names[0] ?? null);
    this.shown.jobs(names, chosen);
    if (chosen !== null) return new Job(chosen);
    this.shown.connection("waiting", "No job runs here. Waiting for one…");
    return null;
  }

  async follow(job) {
    let last = null;
    for await (const tick of job.ticks(this.listening.signal)) {
      this.shown.connection("live", "Connected");
      this.shown.tick(job, tick, last === null);
      last = tick;
    }
    if (last === null || !ENDED.has(last.job.status)) return last !== null;
    this.shown.connection("ended", `The job has ended: ${last.job.status}. Waiting for it to run again…`);
    return false;
  }

  async failed(error) {
    if (this.listening.signal.aborted) return true;
    if (error instanceof Refused && error.status === 401) {
      this.shown.connection("closed", "Reading needs the token.");
      return await this.shown.tokenWanted();
    }
    const why = error instanceof Refused ? error.message : "the connection was lost";
    this.shown.connection("lost", `Connection lost: ${why}. Trying again…`);
    return false;
  }
}

const pause = (milliseconds) => new Promise((go) => setTimeout(go, milliseconds));

function visible() {
  if (!document.hidden) return Promise.resolve();
  return new Promise((go) => document.addEventListener("visibilitychange", go, { once: true }));
}

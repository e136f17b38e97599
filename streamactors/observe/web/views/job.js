// The job as a whole.

import { byId, element, setText } from "../dom.js";
import { NONE, bytes, count, seconds } from "../format.js";

const FACTS = {
  Status: ({ job }) => (job.stopping && job.status === "running" ? "stopping" : job.status),
  Uptime: ({ job }) => seconds(Math.floor(job.uptime_seconds)),
  Restarts: ({ job }) => count(job.restarts),
  Exceptions: (tick) => count(tick.exceptions),
  Checkpoints: (tick) => `${count(tick.completed)} complete, ${count(tick.failed)} failed`,
  "Last checkpoint": ({ job, time_ms }) => lastOf(job.last_checkpoint, time_ms),
  Process: ({ job }) => String(job.pid),
};

const shown = new Map();

export function showJob(tick) {
  setText(byId("job-name"), tick.job.name);
  document.title = `${tick.job.name}: ${tick.job.status}`;
  document.body.dataset.status = tick.job.status;
  for (const [name, tell] of Object.entries(FACTS)) setText(placeOf(name), tell(tick));
  setText(byId("autoscaler"), decisionOf(tick.autoscale));
}

/** What the autoscaler has decided last, and why; nothing where there is none. */
function decisionOf(autoscale) {
  if (!autoscale) return "";
  return `Autoscaler${autoscale.dry_run ? " (dry run)" : ""}: ${autoscale.action}: ${autoscale.reason}`;
}

function placeOf(name) {
  if (!shown.has(name)) {
    const value = element("dd");
    byId("facts").append(element("div", {}, element("dt", {}, name), value));
    shown.set(name, value);
  }
  return shown.get(name);
}

function lastOf(checkpoint, now) {
  if (checkpoint === null) return NONE;
  const ago = Math.floor((now - checkpoint.time_ms) / 1000);
  return `${checkpoint.id}, ${ago < 1 ? "just now" : `${seconds(ago)} ago`}, ${bytes(checkpoint.state_bytes)}`;
}

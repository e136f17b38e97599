// What ended attempts.

import { byId, element, setText } from "../dom.js";
import { time } from "../format.js";

export function showExceptions({ restarts, exceptions }) {
  const open = new Set(Array.from(document.querySelectorAll("#exceptions details[open]"), (each) => each.dataset.of));
  byId("exceptions").replaceChildren(...exceptions.map((failure) => drawn(failure, open)));
  const news = exceptions.length === 0 ? "None." : `Latest: ${exceptions[0].kind}: ${exceptions[0].message}`;
  setText(byId("exceptions-news"), restarts === 0 ? news : `${news} (restarts: ${restarts})`);
}

function drawn(failure, open) {
  const of = `${failure.attempt}@${failure.time_ms}`;
  return element(
    "details",
    { "data-of": of, open: open.has(of) },
    element("summary", {}, `${time(failure.time_ms)}, attempt ${failure.attempt}: ${failure.kind}: ${failure.message}`),
    element("p", {}, whereOf(failure)),
    element("pre", { tabindex: 0, "aria-label": "Traceback" }, failure.traceback),
  );
}

function whereOf({ operator, key, origin }) {
  const known = [operator && `operator ${operator}`, key && `key ${key}`, origin && `record from ${origin}`].filter(Boolean);
  return known.length === 0 ? "No record was in hand." : known.join(", ");
}

// What changes a job, each after it has been confirmed.

import { byId, element, setText } from "./dom.js";
import { bytes, seconds } from "./format.js";
import { keepToken, token } from "./token.js";

const field = (name, label, attributes = {}) => ({ name, label, attributes });
const TOKEN = field("token", "Token", {
  type: "password",
  autocomplete: "off",
  required: true,
  pattern: "[!-~]+",
  title: "as `run --listen` printed it, or as STREAMACTORS_TOKEN has it",
});
const NAME = { type: "text", autocomplete: "off", spellcheck: "false", maxlength: 200 };

const ACTIONS = {
  checkpoint: {
    title: "Take a checkpoint?",
    text: "The job goes on meanwhile.",
    yes: "Take a checkpoint",
    path: "checkpoints",
    fields: () => [],
    body: () => ({}),
    done: (told) => `Checkpoint ${told.id} is complete: ${bytes(told.state_bytes)} in ${seconds(told.seconds)}.`,
  },
  savepoint: {
    title: "Take a savepoint?",
    text: "It is kept until you delete it. The job goes on meanwhile.",
    yes: "Take a savepoint",
    path: "savepoints",
    fields: () => [field("uri", "Name", { ...NAME, required: true, value: `savepoint-${stamp()}` })],
    body: (given) => ({ uri: given.uri }),
    done: (told) => `Savepoint ${told.id} is complete: ${told.uri}`,
  },
  stop: {
    title: "Stop the job?",
    text: "It ends with a last checkpoint, from which it can go on.",
    yes: "Stop the job",
    path: "stop",
    fields: () => [
      field("savepoint", "Savepoint instead (its name; may be empty)", NAME),
      field("drain", "Drain: the end of time, and the job can't go on", { type: "checkbox" }),
    ],
    body: (given) => ({ savepoint: given.savepoint === "" ? null : given.savepoint, drain: given.drain }),
    done: (told) => `The job has ended: ${told.status}.`,
  },
  cancel: {
    title: "Cancel the job?",
    text: "It ends at once, without a checkpoint. What was done since the last one will be done again.",
    yes: "Cancel the job",
    danger: true,
    path: "cancel",
    fields: () => [],
    body: () => ({}),
    done: (told) => `The job has ended: ${told.status}.`,
  },
};

const stamp = () => new Date().toISOString().slice(0, 19).replaceAll(/[:T]/g, "-");

const buttons = () => document.querySelectorAll("[data-action]");

/** `job`: gives the job in view, once there is one. */
export function steerable(job) {
  for (const button of buttons()) {
    button.addEventListener("click", () => steer(job(), ACTIONS[button.dataset.action]));
  }
  byId("token-button").addEventListener("click", () => askToken());
}

/** There is a job. They stay so when it has gone, since a button that is switched off loses the focus. */
export function enableButtons() {
  for (const button of buttons()) button.disabled = false;
}

async function steer(job, action) {
  const given = await confirmed(action, [...action.fields(), ...(token() === null ? [TOKEN] : [])]);
  if (given === null) return;
  if (given.token !== undefined) keepToken(given.token);
  say(`${action.yes}: asked for…`);
  try {
    say(action.done(await job.post(action.path, action.body(given))));
  } catch (error) {
    if (error.status === 401) keepToken("");
    say(`${action.yes}: refused: ${error.message}`, true);
  }
}

let asking = null;

/** Whether one was given; all who want it at the same time ask once. */
export function askToken() {
  asking ??= askForToken().finally(() => {
    asking = null;
  });
  return asking;
}

async function askForToken() {
  const asked = {
    title: "Token",
    text: "Changes need it. It is kept in this tab until the tab is closed; an empty one is forgotten.",
    yes: "Keep it",
  };
  const given = await confirmed(asked, [{ ...TOKEN, attributes: { ...TOKEN.attributes, required: false } }]);
  if (given !== null) keepToken(given.token);
  return given !== null;
}

function say(text, isRefusal = false) {
  setText(byId("outcome"), text);
  byId("outcome").classList.toggle("refused", isRefusal);
}

/** What was filled in, by name; null if it was not confirmed. */
async function confirmed(action, fields) {
  const dialog = byId("confirm");
  while (dialog.open) await new Promise((closed) => dialog.addEventListener("close", closed, { once: true }));
  setText(byId("confirm-title"), action.title);
  setText(byId("confirm-text"), action.text);
  setText(byId("confirm-yes"), action.yes);
  byId("confirm-yes").classList.toggle("danger", action.danger === true);
  const inputs = fields.map((each) => element("input", { name: each.name, ...each.attributes }));
  byId("confirm-fields").replaceChildren(...fields.map((each, at) => element("label", {}, `${each.label} `, inputs[at])));
  return new Promise((answer) => {
    const listening = new AbortController();
    let given = null;
    const on = (node, event, react) => node.addEventListener(event, react, { signal: listening.signal });
    on(byId("confirm-no"), "click", () => dialog.close());
    on(dialog.querySelector("form"), "submit", (event) => {
      event.preventDefault();
      given = Object.fromEntries(inputs.map((each) => [each.name, each.type === "checkbox" ? each.checked : each.value]));
      dialog.close();
    });
    on(dialog, "close", () => {
      listening.abort();
      byId("confirm-fields").replaceChildren(); // a token must not stay there
      answer(given);
    });
    dialog.showModal();
  });
}

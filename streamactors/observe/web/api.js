// The control API, seen from this page: docs/rest.md lists what it has.

import { eventsIn } from "./events.js";
import { token } from "./token.js";

const BASE = new URL("../api/v1/", document.baseURI);

/** `status` 0: nobody answered. */
export class Refused extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export const listJobs = async () => (await ask("GET", "jobs")).jobs;

export class Job {
  constructor(name) {
    this.name = name;
    this.path = `jobs/${encodeURIComponent(name)}`;
  }

  get(what) {
    return ask("GET", `${this.path}/${what}`);
  }

  post(what, body) {
    return ask("POST", `${this.path}/${what}`, body);
  }

  subtask(vertex, index) {
    return this.get(`subtasks/${vertex.split("/").map(encodeURIComponent).join("/")}/${index}`);
  }

  /** Readings, until the stream ends or `signal` says so. */
  async *ticks(signal) {
    const answer = await send("GET", `${this.path}/events`, undefined, signal);
    for await (const data of eventsIn(textsOf(answer.body))) yield JSON.parse(data);
  }
}

async function ask(method, path, body) {
  return (await send(method, path, body)).json();
}

async function send(method, path, body, signal) {
  const answer = await fetch(new URL(path, BASE), {
    method,
    signal,
    headers: headers(body),
    body: body === undefined ? undefined : JSON.stringify(body),
    cache: "no-store",
    credentials: "omit",
  }).catch((error) => {
    throw error.name === "AbortError" ? error : new Refused(0, "unreachable", "the server does not answer");
  });
  if (answer.ok) return answer;
  throw await refusalIn(answer);
}

function headers(body) {
  const given = {};
  if (body !== undefined) given["content-type"] = "application/json";
  if (token() !== null) given.authorization = `Bearer ${token()}`;
  return given;
}

async function refusalIn(answer) {
  const told = await answer.json().catch(() => null);
  const { code, message } = told?.error ?? { code: "failed", message: `the server answered ${answer.status}` };
  return new Refused(answer.status, code, message);
}

async function* textsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (let piece = await reader.read(); !piece.done; piece = await reader.read()) yield piece.value;
  } finally {
    await reader.cancel().catch(() => undefined); // it may have ended by an error already
  }
}

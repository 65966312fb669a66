/** The worker: handles one request after the other, and "stop" at any time. */
import "./no-eval.ts";
import { SidenetError } from "@sidenet/tensor";
import type { Report, Request } from "./protocol.ts";
import { Session } from "./session.ts";

/** The part of a worker's global scope that is used here. The DOM's types only describe a page. */
const scope = globalThis as unknown as {
  postMessage(report: Report): void;
  onmessage: ((event: MessageEvent<Request>) => void) | null;
};

const tell = (report: Report): void => scope.postMessage(report);

let session: Session | null = null;
let stop = new AbortController();
/** Settles when the last request has ended. */
let last: Promise<void> = Promise.resolve();

function opened(): Session {
  if (session) return session;
  throw new SidenetError("P-DEVICE", "there is no device yet.");
}

async function serve(request: Exclude<Request, { type: "stop" }>): Promise<void> {
  switch (request.type) {
    case "open":
      session?.dispose();
      session = null;
      session = await Session.open(request.device, request.model, tell);
      tell({ type: "ready", device: session.facts, parameters: session.parameters });
      break;
    case "train":
      await opened().train(request.settings, request.text, tell, stop.signal);
      break;
    case "generate":
      await opened().generate(request.passage, tell, stop.signal);
      break;
  }
  tell({ type: "idle" });
}

/** Drops a lost device, which can no longer be used. */
function fail(error: unknown): void {
  const isKnown = error instanceof SidenetError;
  const message = isKnown ? error.text : `Something unforeseen: ${error}`;
  const reopen = isKnown && error.code === "T-DEVICE-LOST";
  if (reopen) {
    try {
      session?.dispose();
    } catch {
      // Its tensors were lost with the device.
    }
    session = null;
  }
  tell({ type: "failed", message, reopen });
}

scope.onmessage = ({ data: request }) => {
  if (request.type === "stop") {
    stop.abort();
    return;
  }
  last = last.then(() => {
    stop = new AbortController();
    return serve(request).catch(fail);
  });
};

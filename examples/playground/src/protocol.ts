/** What page and worker say to each other. The worker computes, the page only draws. */
import type { EncodedAdapter, StepMetrics } from "@sidenet/ladder";
import type { BrowserDeviceName, BytesByCategory, Device } from "@sidenet/tensor";

export type PlaygroundMethod = "ladder" | "qlora";

/** Addresses of a model's files. */
export interface ModelUrls {
  readonly name: string;
  readonly config: string;
  readonly weights: string;
  readonly tokenizer: string;
  readonly tokenizerConfig: string;
}

/** A text to learn. The end of its name says how it is read: `.jsonl` as records, anything else as plain text. */
export interface TextFile {
  readonly name: string;
  readonly bytes: Uint8Array;
}

export interface RunSettings {
  readonly method: PlaygroundMethod;
  readonly steps: number;
  readonly learningRate: number;
  /** Sequences of a step. */
  readonly batchSize: number;
  /** Tokens of a sequence at most. */
  readonly maxLength: number;
  /** Shown to the model before and after the training. */
  readonly passage: Passage;
}

/** What the model is to write. */
export interface Passage {
  readonly prompt: string;
  /** New ones at most. */
  readonly tokens: number;
}

export type Request =
  | { readonly type: "open"; readonly device: BrowserDeviceName; readonly model: ModelUrls }
  | { readonly type: "train"; readonly settings: RunSettings; readonly text: TextFile }
  | { readonly type: "generate"; readonly passage: Passage }
  | { readonly type: "stop" };

/** Where the computing is done. */
export interface DeviceFacts {
  readonly kind: Device["kind"];
  readonly label: string;
  /** Why it is this one. */
  readonly reason: string;
}

/** What a run is, known before its first step. */
export interface RunFacts {
  readonly trainableParameters: number;
  readonly trainTokens: number;
  /** Loss on the held-out text, before the training. */
  readonly initialLoss: number;
}

/** What a run came to. */
export interface RunResult {
  readonly stopped: boolean;
  readonly steps: number;
  readonly seconds: number;
  readonly tokens: number;
  readonly finalLoss: number;
  readonly peakBytes: number;
  readonly peak: BytesByCategory;
  readonly adapter: EncodedAdapter;
}

/** Text of the model as it is, and of the model with what was trained. */
export type When = "before" | "after";

export type Report =
  | { readonly type: "busy"; readonly what: string }
  | { readonly type: "ready"; readonly device: DeviceFacts; readonly parameters: number }
  | { readonly type: "started"; readonly facts: RunFacts }
  | { readonly type: "step"; readonly metrics: StepMetrics; readonly live: BytesByCategory }
  | { readonly type: "evaluation"; readonly step: number; readonly loss: number }
  | { readonly type: "clear-text"; readonly when: When; readonly prompt: string }
  | { readonly type: "text"; readonly when: When; readonly text: string }
  | { readonly type: "finished"; readonly result: RunResult }
  | { readonly type: "note"; readonly text: string }
  /** The worker waits for the next request. */
  | { readonly type: "idle" }
  /** `reopen`: the device is of no use any more. */
  | { readonly type: "failed"; readonly message: string; readonly reopen: boolean };

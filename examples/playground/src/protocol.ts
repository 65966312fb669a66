/** The messages between page and worker. The worker computes; the page only draws. */
import type { EncodedAdapter, StepMetrics } from "@sidenet/ladder";
import type { BrowserDeviceName, BytesByCategory, Device } from "@sidenet/tensor";

export type PlaygroundMethod = "ladder" | "qlora";

/** URLs of a model's files, by the names of these. */
export interface ModelUrls {
  readonly name: string;
  readonly files: Readonly<Record<string, string>>;
}

/** A text to learn. It is read as records if its name ends in `.jsonl`, else as plain text. */
export interface TextFile {
  readonly name: string;
  readonly bytes: Uint8Array;
}

export interface RunSettings {
  readonly method: PlaygroundMethod;
  readonly steps: number;
  readonly learningRate: number;
  /** Sequences per step. */
  readonly batchSize: number;
  /** The largest number of tokens of a sequence. */
  readonly maxLength: number;
  /** The model continues it before and after training. */
  readonly passage: Passage;
}

/** The settings of text generation. */
export interface Passage {
  readonly prompt: string;
  /** The largest number of new tokens. */
  readonly tokens: number;
}

export type Request =
  | { readonly type: "open"; readonly device: BrowserDeviceName; readonly model: ModelUrls }
  | { readonly type: "train"; readonly settings: RunSettings; readonly text: TextFile }
  | { readonly type: "generate"; readonly passage: Passage }
  | { readonly type: "stop" };

/** The device that computes. */
export interface DeviceFacts {
  readonly kind: Device["kind"];
  readonly label: string;
  /** Why it was chosen. */
  readonly reason: string;
}

/** What is known of a run before its first step. */
export interface RunFacts {
  readonly trainableParameters: number;
  readonly trainTokens: number;
  /** Loss on the held-out text before training. */
  readonly initialLoss: number;
}

/** The result of a run. */
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

/** Text of the frozen model, and of the model with its adapter. */
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
  /** The worker is ready for the next request. */
  | { readonly type: "idle" }
  /** `reopen`: the device can no longer be used. */
  | { readonly type: "failed"; readonly message: string; readonly reopen: boolean };

/** The part of the package that needs Node: files and whole runs. */
export { type BaseModel, openAdapter, saveAdapter } from "./adapter-files.ts";
export { writeFileAtomic } from "./atomic-write.ts";
export { bundledConfigs } from "./bundled-configs.ts";
export { openFileSource } from "./file-source.ts";
export { type FieldMapping, readRecords } from "./jsonl.ts";
export { type ModelFiles, openModel, openModelConfig } from "./open-model.ts";
export {
  type RunStart,
  type StepMetrics,
  type TrainRunEvents,
  type TrainRunOptions,
  type TrainSummary,
  trainRun,
} from "./train-run.ts";

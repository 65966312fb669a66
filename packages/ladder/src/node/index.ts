/** The part of the package that needs Node: files and whole runs. */
export { openAdapter, readBackboneSetup, restoreAdapter, saveAdapter } from "./adapter-files.ts";
export { writeFileAtomic } from "./atomic-write.ts";
export { bundledConfigs, bundledModels } from "./bundled-configs.ts";
export { type CalibrationOptions, calibrationRows } from "./calibration-rows.ts";
export { convertModel } from "./convert-model.ts";
export {
  CONVERT_TYPES,
  type ConvertOptions,
  type ConvertProgress,
  type ConvertSummary,
  type ConvertType,
} from "./convert-options.ts";
export { openRecords, type RecordStore, readRecords } from "./data/record-store.ts";
export {
  type Estimates,
  type EvalRunEvents,
  type EvalRunOptions,
  type EvalSummary,
  evalRun,
} from "./eval-run.ts";
export { type ExportOptions, type ExportSummary, exportAdapter } from "./export-adapter.ts";
export { openFileSource } from "./file-source.ts";
export type { HubOptions } from "./hub.ts";
export type { RetryOptions } from "./hub-fetch.ts";
export { type Inference, type InferenceOptions, openInference } from "./inference.ts";
export { type ModelFiles, openModel, openModelConfig } from "./open-model.ts";
export { type ReportData, type ReportedRun, readReportData, renderReport, writeReport } from "./report.ts";
export { type ReportServer, serveReport } from "./report-server.ts";
export {
  type CheckpointFile,
  type CheckpointKind,
  Checkpoints,
  type RestoredCheckpoint,
} from "./run/checkpoints.ts";
export { MetricsLog, readMetrics } from "./run/metrics-log.ts";
export type { Existing } from "./run/run-folder.ts";
export type { WeightedFile } from "./run/train-run-options.ts";
export {
  type RunFailure,
  type RunReady,
  type RunStart,
  type StepMetrics,
  type TrainRunEvents,
  type TrainRunOptions,
  type TrainSummary,
  trainRun,
} from "./train-run.ts";

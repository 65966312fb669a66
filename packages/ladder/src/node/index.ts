/** The part of the package that needs Node: files and whole runs. */
export { type BaseModel, openAdapter, saveAdapter } from "./adapter-files.ts";
export { writeFileAtomic } from "./atomic-write.ts";
export { bundledConfigs, bundledModels } from "./bundled-configs.ts";
export type { CalibrationOptions } from "./calibration-rows.ts";
export {
  CONVERT_TYPES,
  type ConvertOptions,
  type ConvertProgress,
  type ConvertSummary,
  type ConvertType,
  convertModel,
} from "./convert-model.ts";
export { EncodedRecords, type HeldOut, splitRecords } from "./data/encoded-records.ts";
export {
  openRecords,
  type RecordList,
  type RecordParser,
  type RecordStore,
  readRecords,
  recordParser,
  type StoredRecord,
} from "./data/record-store.ts";
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
export type { WeightedFile } from "./run/load.ts";
export { type EvalMetrics, type MetricsLine, readMetrics, type Sample } from "./run/metrics-log.ts";
export type { Existing } from "./run/run-folder.ts";
export type { StepProfile, TimeShare } from "./run/step-profile.ts";
export type { StopReason } from "./run/training-loop.ts";
export {
  type RunFailure,
  type RunStart,
  type StepMetrics,
  type TrainRunEvents,
  type TrainRunOptions,
  type TrainSummary,
  trainRun,
} from "./train-run.ts";

export type { Ceilings } from "./bench/ceilings.ts";
export type { BenchFailure, BenchResult, Timing } from "./bench/measure.ts";
export { BENCH_MODELS, type BenchModel } from "./bench/shapes.ts";
export { type BenchOptions, type BenchReport, type BenchRow, runSuite } from "./bench/suite.ts";
export { CalibratedLayers } from "./calibration/calibrated-layers.ts";
export {
  BatchStream,
  type BatchStreamOptions,
  type DataPosition,
  dataPositionSchema,
  inMemory,
  type StreamedBatch,
  type TokenDataset,
} from "./data/batch-stream.ts";
export { inBatches, joinRecords, makeBatch, packRows } from "./data/batches.ts";
export { EncodedRecords, type HeldOut, splitRecords } from "./data/encoded-records.ts";
export type { FieldMapping, RecordField } from "./data/field-mapping.ts";
export { type Line, linesOf } from "./data/lines.ts";
export {
  type Indexed,
  type RecordList,
  type RecordParser,
  recordParser,
  type StoredRecord,
} from "./data/record-list.ts";
export {
  type EncodeOptions,
  type Encoder,
  encodeRecord,
  encodeWindows,
  encodingBy,
  parseRecord,
  type Source,
  type TextRecord,
  type TokenRecord,
} from "./data/records.ts";
export { jsonlRows, type Row, textRows } from "./data/rows.ts";
export {
  type ConstantAnswer,
  type EvalOptions,
  type EvalResult,
  type Evaluation,
  type PromptTemplate,
  prepareEvaluation,
} from "./eval/evaluate.ts";
export { type Estimate, estimate, estimateDifference, type Metric } from "./eval/intervals.ts";
export { scoreWindows, slidingWindows, type WindowScore } from "./eval/perplexity.ts";
export {
  type Scores,
  type ScoringItem,
  type ScoringOptions,
  scoreContinuations,
} from "./eval/score-continuations.ts";
export { QUESTION_TASKS, type QuestionTask, TASKS, type Task, trainingRecord } from "./eval/tasks.ts";
export { type ByteSource, memorySource } from "./formats/byte-source.ts";
export { type Checkpoint, type CheckpointTensor, requireTensor } from "./formats/checkpoint.ts";
export { type BlobLike, blobSource, type FileLike } from "./formats/file-set.ts";
export { type GgufFile, type GgufTensorInfo, type GgufValue, readGguf } from "./formats/gguf.ts";
export { checkpointFromGguf } from "./formats/gguf-checkpoint.ts";
export { modelConfigFromGguf } from "./formats/gguf-config.ts";
export { tokenizerFromGguf } from "./formats/gguf-tokenizer.ts";
export type { GgufType } from "./formats/gguf-types.ts";
export { type OpenedModel, openModelFiles } from "./formats/open-model-files.ts";
export { openSafetensors } from "./formats/safetensors.ts";
export { encodeSafetensors, type FloatType, type WritableTensor } from "./formats/safetensors-write.ts";
export { type GenerateOptions, generate, generateBatch, type Sampling } from "./generation/generate.ts";
export {
  type Continuation,
  type GenerateTextOptions,
  generateTexts,
  type StopReason,
} from "./generation/generate-text.ts";
export { KeptText } from "./generation/kept-text.ts";
export { ModelCache } from "./generation/model-cache.ts";
export { StopMatcher, TextStream } from "./generation/text-stream.ts";
export {
  type Adapter,
  effectiveDepth,
  METHODS,
  type Method,
  type SideAdapter,
  type SidePass,
  type SidePassOptions,
} from "./methods/adapter.ts";
export {
  ADAPTER_FILES,
  type BaseModel,
  type EncodedAdapter,
  encodeAdapter,
} from "./methods/encode-adapter.ts";
export { FullTuning } from "./methods/full-tuning.ts";
export { HeadTuning } from "./methods/head-tuning.ts";
export { type InitialOptions, initializeWeights } from "./methods/initial-values.ts";
export {
  type LadderOptions,
  ladderConfig,
  type SideOptions,
  type XLadderOptions,
  xladderConfig,
} from "./methods/ladder-config.ts";
export {
  type AdapterConfig,
  adapterConfigJson,
  loadAdapter,
  parseAdapterConfig,
  type WeightsConfig,
} from "./methods/load-adapter.ts";
export { Lora, type LowRank, loraParameters, withLowRank } from "./methods/lora.ts";
export { type LoraConfig, type LoraOptions, loraConfig, parseLoraConfig } from "./methods/lora-config.ts";
export { initializeAdapter, type MethodOptions, makeAdapter, quantizesByDefault } from "./methods/method.ts";
export { type ModelTensor, mergeAdapter, modelTensors } from "./methods/model-tensors.ts";
export { type PruneOptions, prunedValues } from "./methods/pruned-init.ts";
export { IMPORTANCES, type Importance } from "./methods/pruning.ts";
export { residualStream, type StreamOptions } from "./methods/residual-stream.ts";
export { parseSideConfig, type SideConfig, sideParameters } from "./methods/side-config.ts";
export type { InitialSide } from "./methods/side-init.ts";
export { SideNetwork } from "./methods/side-network.ts";
export { type BaseStorage, emptyWeights, type WeightDType } from "./model/base-storage.ts";
export { batchLoss, type LabeledBatch, scoredPositions } from "./model/batch-loss.ts";
export {
  type Attention,
  type BlockContext,
  type BlockShape,
  type BlockWeights,
  block,
  blockParameters,
  blockWeights,
  type LayerCache,
  type ParameterSpec,
  PROJECTIONS,
  type ProjectionName,
  type RunLayer,
} from "./model/block.ts";
export {
  contextLimit,
  type Family,
  type ModelConfig,
  parseModelConfig,
  type Quantization,
} from "./model/config.ts";
export type { Rope, RopeScaling } from "./model/config-rope.ts";
export {
  Decoder,
  decoderParameters,
  type Forward,
  type HiddenOptions,
  layerName,
  shiftLabels,
  type TokenBatch,
} from "./model/decoder.ts";
export type { Embedding, Head, LossOptions } from "./model/head.ts";
export { type LoadOptions, loadWeights } from "./model/load-weights.ts";
export { type DoubleNf4, denseMatrix, type Nf4Values, quantizeNf4 } from "./model/nf4-weight.ts";
export type { Projection, WeightRange } from "./model/projection.ts";
export { type RopeTables, ropeFrequencies, ropeTables, ropeValues } from "./model/rope-tables.ts";
export { type KvShape, kvLayers, kvShapes, StateCache } from "./model/state-cache.ts";
export { ChatTemplate, type SpecialTokens, type TextPiece, type Tool } from "./text/chat-template.ts";
export type { ChatMessage } from "./text/messages.ts";
export { afterPrefix, encodePrefix } from "./text/prefix-text.ts";
export { type EncodingOptions, loadTokenizer, type Tokenizer } from "./text/tokenizer.ts";
export { type EvaluationOptions, evaluateLoss } from "./training/evaluate-loss.ts";
export { FlopCounts, type FlopsByOp, type Phase, type PhaseFlops } from "./training/flop-counts.ts";
export type { Loss, LossInputs, LossSettings, MakeLoss } from "./training/loss.ts";
export { defaultLearningRate, defaultMemory, defaultStorage } from "./training/method-defaults.ts";
export type { EvalMetrics, MetricsLine, Sample, StepMetrics } from "./training/metrics.ts";
export {
  BINDING_LIMITS,
  type LargeBuffer,
  type LongestContext,
  longestContext,
  measureStep,
  type Plan,
  type PlanOptions,
  planStep,
  type StepOptions,
  USUAL_LIMITS,
} from "./training/plan.ts";
export { newRunState, type RunState } from "./training/run-state.ts";
export type { StepProfile, TimeShare } from "./training/step-profile.ts";
export {
  type MemoryOptions,
  type StepReport,
  Trainer,
  type TrainerCounters,
  type TrainerOptions,
} from "./training/trainer.ts";
export { readTrainerState, writeTrainerState } from "./training/trainer-state.ts";
export {
  type LoopEvents,
  type LoopOptions,
  type LoopParts,
  type RunCheckpoints,
  type RunLog,
  type StopReason as RunStopReason,
  TrainingLoop,
} from "./training/training-loop.ts";

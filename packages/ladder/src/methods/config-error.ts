import { SidenetError } from "@sidenet/tensor";
import type { Fault } from "../external-input.ts";

/**
 * Values that an adapter's configuration cannot have. The error knows their names apart from its text, so that who read them from
 * elsewhere says what they are called there: a field of a file, an option, a flag.
 */
export class ConfigError extends SidenetError {
  readonly faults: readonly Fault[];

  constructor(faults: readonly Fault[], code = "L-ADAPTER-CONFIG", options?: ErrorOptions) {
    super(
      code,
      faults.map(({ field, problem }) => (field ? `${field}: ${problem}` : problem)).join("; "),
      options,
    );
    this.faults = faults;
  }

  /** The same error by other names. */
  renamed(nameOf: (field: string) => string, code = this.code): ConfigError {
    const faults = this.faults.map(({ field, problem }) => ({ field: nameOf(field), problem }));
    return new ConfigError(faults, code, { cause: this });
  }
}

/** Throws `L-ADAPTER-CONFIG` for the value of a field. */
export function refuseField(field: string, problem: string): never {
  throw new ConfigError([{ field, problem }]);
}

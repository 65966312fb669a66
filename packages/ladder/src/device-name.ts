import type { Device } from "@sidenet/tensor";

/** A device as results and files of runs name it. */
export const deviceName = ({ kind, label }: Pick<Device, "kind" | "label">): string => `${kind}: ${label}`;

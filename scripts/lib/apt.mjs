// How every apt-get of ours runs.

/** Nobody is there to answer questions. */
export const APT_ENV = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };

/** Another apt may run, as on a machine's first boot. */
export const WAIT_FOR_LOCK = ["-o", "DPkg::Lock::Timeout=300"];

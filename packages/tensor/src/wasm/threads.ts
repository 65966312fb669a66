/**
 * How threads share a dispatch, as WebAssembly functions over the words of `CONTROL`.
 *
 *     dispatch: next = 0, left = 0, state = OPEN; generation += 1; wake sleeping threads
 *               take tasks until none are left
 *               joined = state, state = 0 (closed); wait until left = joined
 *     work:     forever: wait until generation changes
 *                        if state is OPEN and compare-and-swap(state, state + 1): take tasks; left += 1
 *
 * A thread that wakes up after the dispatch was closed does nothing, so the caller never waits for a thread to wake up. Tasks are
 * parts of the output, taken one by one; which thread takes which does not change the result.
 */
import type { Callee, FunctionBuilder } from "./assembler/function.ts";
import { atomics, i32 } from "./assembler/instructions.ts";
import { ModuleBuilder } from "./assembler/module.ts";
import { ARGS, CONTROL, SCRATCH, SCRATCH_BYTES } from "./layout.ts";

const OPEN = 0x4000_0000;
const ALL = -1;
/** Reads of the generation before a thread sleeps: about 50 µs, longer than the host needs between two ops. */
const SPINS = 20_000;
/** Reads of `left` before the caller sleeps, if it may: longer than most tasks take. */
const CALLER_SPINS = 50_000;
const CALLER_NAP_NS = 200_000;
/** Parameters of a kernel: task, arguments, scratch. */
const KERNEL_TYPE = ModuleBuilder.typeOf(3);

/** `drain(scratch)`: takes and runs tasks until there are none. */
function emitDrain(m: ModuleBuilder): Callee {
  return m.function(1, (f) => {
    const [scratch] = f.params;
    const kernel = f.i32(i32.load(CONTROL.kernel));
    const tasks = f.i32(i32.load(CONTROL.tasks));
    const task = f.i32();
    f.forever((stop) => {
      f.set(task, atomics.add(CONTROL.next, 1));
      stop(i32.geS(task, tasks));
      f.callIndirect(kernel, KERNEL_TYPE, task, ARGS, scratch);
    });
  });
}

/** `work(thread)`: the loop of a thread, until `quit` is set. */
function emitWork(m: ModuleBuilder, drain: Callee): void {
  m.function(
    1,
    (f) => {
      const [thread] = f.params;
      const scratch = f.i32(i32.add(SCRATCH, i32.mul(thread, SCRATCH_BYTES)));
      const seen = f.i32();
      const state = f.i32();
      f.forever((stop) => {
        emitAwaitGeneration(f, seen);
        stop(i32.load(CONTROL.quit));
        f.set(state, atomics.load(CONTROL.state));
        f.if(
          i32.and(state, OPEN),
          () =>
            f.if(i32.eq(atomics.exchangeIf(CONTROL.state, state, i32.add(state, 1)), state), () => {
              f.set(seen, atomics.load(CONTROL.generation)); // does not change before this thread has left
              f.call(drain, scratch);
              f.drop(atomics.add(CONTROL.left, 1));
              f.if(atomics.load(CONTROL.callerSleeps), () => f.drop(atomics.notify(CONTROL.left, 1)));
            }),
          () => f.set(seen, atomics.load(CONTROL.generation)), // the dispatch is already closed
        );
      });
    },
    "work",
  );
}

function emitAwaitGeneration(f: FunctionBuilder, seen: ReturnType<FunctionBuilder["i32"]>): void {
  const spins = f.i32();
  f.set(spins, 0);
  f.while(i32.eq(atomics.load(CONTROL.generation), seen), () => {
    f.set(spins, i32.add(spins, 1));
    f.if(i32.gtS(spins, SPINS), () => {
      f.drop(atomics.add(CONTROL.sleepers, 1));
      f.drop(atomics.wait(CONTROL.generation, seen, -1));
      f.drop(atomics.add(CONTROL.sleepers, -1));
    });
  });
}

/** `dispatch(mayWait)`: runs the dispatch of `CONTROL` on all threads; `mayWait` allows the caller to sleep. */
function emitDispatch(m: ModuleBuilder, drain: Callee): void {
  m.function(
    1,
    (f) => {
      const [mayWait] = f.params;
      const joined = f.i32();
      const left = f.i32();
      const spins = f.i32();
      f.do(
        atomics.store(CONTROL.next, 0),
        atomics.store(CONTROL.left, 0),
        atomics.store(CONTROL.state, OPEN),
      );
      f.drop(atomics.add(CONTROL.generation, 1));
      f.if(atomics.load(CONTROL.sleepers), () => f.drop(atomics.notify(CONTROL.generation, ALL)));
      f.call(drain, SCRATCH);
      f.set(joined, i32.and(atomics.and(CONTROL.state, 0), OPEN - 1));
      f.set(left, atomics.load(CONTROL.left));
      f.while(i32.ne(left, joined), () => {
        f.set(spins, i32.add(spins, 1));
        f.if(i32.and(mayWait, i32.gtS(spins, CALLER_SPINS)), () => {
          f.do(atomics.store(CONTROL.callerSleeps, 1));
          f.drop(atomics.wait(CONTROL.left, left, CALLER_NAP_NS));
          f.do(atomics.store(CONTROL.callerSleeps, 0));
        });
        f.set(left, atomics.load(CONTROL.left));
      });
    },
    "dispatch",
  );
}

/** `run()`: all tasks on the calling thread. */
function emitRun(m: ModuleBuilder): void {
  m.function(
    0,
    (f) => {
      const kernel = f.i32(i32.load(CONTROL.kernel));
      const tasks = f.i32(i32.load(CONTROL.tasks));
      f.for(0, tasks, 1, (task) => f.callIndirect(kernel, KERNEL_TYPE, task, ARGS, SCRATCH));
    },
    "run",
  );
}

/** Adds `run`, and with a shared memory `dispatch` and `work`. */
export function emitThreads(m: ModuleBuilder): void {
  emitRun(m);
  if (!m.options.shared) return;
  const drain = emitDrain(m);
  emitWork(m, drain);
  emitDispatch(m, drain);
}

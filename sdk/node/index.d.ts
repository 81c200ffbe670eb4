/** Who this replica is. After a restore all of it is the new replica's. */
export interface Identity {
  pod: string;
  replica: string;
  hostname: string;
  /** Another one after each restore. */
  generation: string;
  /** "cold" or a checkpoint's id. */
  started_from: string;
}
/** Whether this program runs in a replica. */
export function inside(): boolean;
/** Who this replica is, now. Throws outside one. */
export function identity(): Identity;
/** Whether this pod is checkpointed: asked for, and possible here. */
export function checkpointEnabled(): boolean;
/** Whether this replica was started from a checkpoint. */
export function restored(): boolean;
/** Says that this process is warm: once in each worker, where there are several. */
export function ready(): void;
/**
 * Resolves when the start of this replica is over. true: this process runs restored from a checkpoint. false: it is the one that was
 * started cold, and goes on. Always resolves; after timeoutMs at the latest, where that is given.
 */
export function waitForRestore(timeoutMs?: number): Promise<boolean>;
/** Calls the function in this process after each restore. Does not keep the process alive. */
export function onRestore(call: () => void): void;

'use strict';
// Thaw inside a container: say that the program is ready, learn that it was restored, know who it is. The protocol is files in /run/thaw
// (docs/container-protocol.md); outside a replica these functions do nothing.
//
//     const thaw = require('thaw');
//     await load();
//     thaw.ready();
//     thaw.onRestore(() => reconnect());

const fs = require('fs');

const FOLDER = '/run/thaw';
// fs.watch says nothing of what came before it, nor of a restore, which the event loop sleeps through.
const LOOK_MS = 250;

const inside = () => fs.existsSync(`${FOLDER}/identity.json`);
const identity = () => JSON.parse(fs.readFileSync(`${FOLDER}/identity.json`, 'utf8'));
const checkpointEnabled = () => process.env.THAW_CHECKPOINT_ENABLED === 'true';
const restored = () => fs.existsSync(`${FOLDER}/restored`);

function touch(path) {
  try {
    fs.closeSync(fs.openSync(path, fs.constants.O_WRONLY | fs.constants.O_CREAT | fs.constants.O_NOFOLLOW, 0o644));
  } catch (error) {
    if (error.code !== 'EACCES' || !fs.existsSync(path)) throw error; // another user's worker has made it
  }
}

// Node has neither flock nor unix datagrams: `notify` conditions are not for it, and entries of dead workers go when a worker of another
// language, or a later call, sees them.
function ready() {
  if (!inside()) return;
  const workers = `${FOLDER}/workers`;
  fs.mkdirSync(workers, {recursive: true});
  if (fs.statSync(workers).uid === process.geteuid()) fs.chmodSync(workers, 0o1777);
  for (const entry of fs.readdirSync(workers)) {
    if (!/^\d+$/.test(entry) || fs.existsSync(`/proc/${entry}`)) continue;
    try {
      fs.unlinkSync(`${workers}/${entry}`);
    } catch {
      // Another worker did, or it is another user's.
    }
  }
  if (process.env.THAW_CHECKPOINT_CONDITION === 'notify') {
    process.emitWarning('thaw: node cannot send READY=1, which the condition notify() waits for: use workers(1) instead');
  }
  touch(`${workers}/${process.pid}`);
  touch(`${FOLDER}/ready`);
}

// Calls look() when something in the folder changes and now and then, until it returns true.
function watch(look, persistent) {
  if (look()) return () => {};
  let watcher = null;
  const close = () => {
    clearInterval(timer);
    if (watcher) watcher.close();
  };
  const again = () => {
    if (look()) close();
  };
  const timer = setInterval(again, LOOK_MS);
  if (!persistent) timer.unref();
  try {
    watcher = fs.watch(FOLDER, {persistent}, again);
    watcher.on('error', () => {});
  } catch {
    // Out of watches: the timer looks.
  }
  return close;
}

function waitForRestore(timeoutMs) {
  if (!inside() || (!checkpointEnabled() && !restored())) return Promise.resolve(false);
  return new Promise((resolve) => {
    let timer;
    const close = watch(() => {
      const over = restored() || fs.existsSync(`${FOLDER}/started.json`);
      if (over) {
        clearTimeout(timer);
        resolve(restored());
      }
      return over;
    }, true);
    if (timeoutMs !== undefined) {
      timer = setTimeout(() => {
        close();
        resolve(restored());
      }, timeoutMs);
    }
  });
}

function onRestore(call) {
  if (typeof call !== 'function') throw new TypeError('onRestore: give a function without arguments');
  if (!inside()) return;
  let generation = identity().generation;
  watch(() => {
    if (restored() && identity().generation !== generation) {
      generation = identity().generation;
      // One that fails must not keep the others from being called.
      const failed = (error) => console.error('thaw: an onRestore function failed', error);
      try {
        Promise.resolve(call()).catch(failed);
      } catch (error) {
        failed(error);
      }
    }
    return false;
  }, false);
}

module.exports = {inside, identity, checkpointEnabled, restored, ready, waitForRestore, onRestore};

// A node server with Thaw's module.
const http = require('http');
const thaw = require('/opt/thaw/node');

const state = {restores: [], waited: null};
thaw.onRestore(() => state.restores.push(thaw.identity().replica));
thaw.waitForRestore().then((restored) => {
  state.waited = restored;
});
http.createServer((_, answer) => {
  answer.end(JSON.stringify({...state, enabled: thaw.checkpointEnabled(), identity: thaw.identity()}));
}).listen(8000, '0.0.0.0', () => thaw.ready());

// A caller in Node.js who sends a file whatever happens, and prints as JSON how the call ended.
// Arguments: address, folder of the protos, MiB to send, "told" where the spec is to tell the size.
const [address, include, count, told] = process.argv.slice(2);
const grpc = require('@grpc/grpc-js'), loader = require('@grpc/proto-loader');
const pkg = grpc.loadPackageDefinition(loader.loadSync('preprocessor/v1/preprocessor.proto', {includeDirs: [include], keepCase: true, enums: String, longs: Number}));
const client = new pkg.preprocessor.v1.Preprocessor(address, grpc.credentials.createInsecure());
const piece = Buffer.alloc(1 << 20), pieces = Number(count);
const call = client.Prepare();
call.on('data', () => {});
let ended = false;
call.on('error', error => { ended = true;
  const details = error.metadata.get('grpc-status-details-bin');
  console.log(JSON.stringify({code: error.code, message: error.details, details: details.length ? details[0].toString('latin1') : ''}));
  client.close();
});
const medium = {key: 'clip', modality: 'MODALITY_VIDEO', chunked: {}};
if (told === 'told') medium.size_bytes = pieces * (1 << 20);
call.write({spec: {chat: {messages: [{role: 'user', parts: [{media_key: 'clip'}]}]}, media: [medium]}});
let sent = 0;
(function next() {
  while (!ended && sent < pieces) {
    const more = call.write({chunk: {key: 'clip', offset_bytes: sent * (1 << 20), data: piece, last: sent + 1 === pieces}});
    sent++;
    if (!more) return call.once('drain', next);
  }
  if (!ended) call.end();
})();

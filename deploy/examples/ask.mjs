// Ask a question about a photo from Node, and print the answer as it comes. Uploads and tensors: protos/README.md.
//
//     npm install @grpc/grpc-js @grpc/proto-loader
//     PROTOS=protos node ask.mjs ADDRESS photo.jpg "What is this?"
import { readFile } from "node:fs/promises";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const [address, photo, question] = process.argv.slice(2);
const definition = await protoLoader.load("preprocessor/v1/preprocessor.proto", {
  includeDirs: [process.env.PROTOS ?? "protos"],
  keepCase: true,
  oneofs: true,
});
const { Preprocessor } = grpc.loadPackageDefinition(definition).preprocessor.v1;
const client = new Preprocessor(address, grpc.credentials.createInsecure());

const call = client.Generate({ deadline: Date.now() + 60_000 });
call.write({
  spec: {
    prompt: {
      chat: { messages: [{ role: "user", parts: [{ media_key: "photo" }, { text: question }] }] },
      media: [{ key: "photo", modality: "MODALITY_IMAGE", inline_data: await readFile(photo) }], // up to 1 MiB; else in chunks
    },
    parameters: { max_tokens: 64 },
  },
});
call.end();

try {
  for await (const response of call) {
    if (response.message === "delta") process.stdout.write(response.delta.text);
  }
  process.stdout.write("\n");
} catch (error) {
  console.error(error.details);
  process.exitCode = 1;
}
client.close();

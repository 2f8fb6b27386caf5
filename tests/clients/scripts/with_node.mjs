// OpenAI's package for Node.
import fs from "node:fs";
import assert from "node:assert";
import OpenAI, { NotFoundError } from "openai";

const client = new OpenAI();
const model = "smollm2-135m";
const messages = [{ role: "user", content: "Say hello." }];
const row = JSON.stringify({ messages: [...messages, { role: "assistant", content: "Hello." }] });
fs.writeFileSync("rows.jsonl", Array(12).fill(row).join("\n"));
const file = await client.files.create({ file: fs.createReadStream("rows.jsonl"), purpose: "fine-tune" });
assert.equal(await (await client.files.content(file.id)).text(), fs.readFileSync("rows.jsonl", "utf8"));
const job = await client.fineTuning.jobs.create({ model, training_file: file.id, method: { type: "supervised" } });
assert.ok((await client.fineTuning.jobs.listEvents(job.id)).data.length >= 2);
await client.fineTuning.jobs.cancel(job.id);
const said = await client.chat.completions.create({ model, messages, max_tokens: 8, temperature: 0 });
let whole = "";
for await (const chunk of await client.chat.completions.create({ model, messages, max_tokens: 8, temperature: 0, stream: true })) {
  whole += chunk.choices[0]?.delta?.content ?? "";
}
assert.equal(whole, said.choices[0].message.content);
assert.equal((await client.embeddings.create({ model: "minilm-l6", input: "hello" })).data[0].embedding.length, 384);
await assert.rejects(client.chat.completions.create({ model: "no-such", messages }), NotFoundError);
console.log(`openai for Node: ${JSON.stringify(whole)}`);

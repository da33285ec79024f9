// The API as its OpenAPI description says it, without anything from elsewhere.

import { get } from "./api.js";
import { $, element } from "./dom.js";

let schemas = {};

function resolved(schema) {
  return schema?.$ref ? schemas[schema.$ref.split("/").pop()] : (schema ?? {});
}

function kind(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(kind).join(" or ");
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" or ");
  if (schema.type === "array") return `list of ${kind(schema.items)}`;
  return schema.type ?? "any";
}

function table(rows) {
  const line = (cells, name) => element("tr", {}, ...cells.map((cell) => element(name, {}, cell)));
  return element("table", {},
    element("thead", {}, line(["field", "type", "what it is"], "th")),
    element("tbody", {}, ...rows.map((row) => line(row, "td"))));
}

function fields(schema) {
  const required = new Set(schema.required ?? []);
  return Object.entries(schema.properties ?? {}).map(([name, one]) => [
    element("code", {}, name),
    kind(one) + (required.has(name) ? ", required" : "default" in one ? `, default ${JSON.stringify(one.default)}` : ""),
    one.description ?? "",
  ]);
}

function example(schema) {
  const body = {};
  for (const [name, one] of Object.entries(schema.properties ?? {})) {
    if (one.examples) body[name] = one.examples[0];
  }
  return body;
}

function operation(verb, path, told) {
  const parts = [
    element("h2", {}, element("span", { class: "verb" }, verb.toUpperCase()), path),
    element("p", {}, told.description ?? told.summary ?? ""),
  ];
  const query = (told.parameters ?? []).map((one) => [
    element("code", {}, one.name), `${kind(one.schema)}, in the ${one.in}`, one.description ?? "",
  ]);
  if (query.length) parts.push(table(query));
  const body = resolved(told.requestBody?.content["application/json"]?.schema);
  let curl = `curl ${location.origin}${path}`;
  if (told.requestBody) {
    parts.push(table(fields(body)));
    curl += ` \\\n  -H 'content-type: application/json' \\\n  -d '${JSON.stringify(example(body))}'`;
  }
  parts.push(element("pre", {}, curl));
  const answer = told.responses["200"]?.content?.["application/json"]?.schema;
  if (answer?.$ref) {
    parts.push(element("details", {}, element("summary", {}, `200: ${kind(answer)}`), table(fields(resolved(answer)))));
  }
  const errors = Object.entries(told.responses).filter(([status]) => status !== "200");
  if (errors.length) {
    parts.push(element("details", {}, element("summary", {}, "Errors"),
      table(errors.map(([status, one]) => [element("code", {}, status), "Error", one.description]))));
  }
  return element("section", { class: "card" }, ...parts);
}

function type(name) {
  return element("section", { class: "card" }, element("h2", {}, name),
    element("p", {}, schemas[name].description ?? ""), table(fields(schemas[name])));
}

try {
  const api = await get("/openapi.json");
  schemas = api.components.schemas;
  const operations = Object.entries(api.paths).flatMap(([path, verbs]) =>
    Object.entries(verbs).map(([verb, told]) => operation(verb, path, told)));
  const others = Object.keys(schemas).filter((name) => schemas[name].properties && !/Request$|ValidationError$/.test(name));
  $("operations").replaceChildren(...operations, element("h2", {}, "Types"), ...others.map(type));
} catch (error) {
  $("operations").replaceChildren(element("p", { role: "alert" }, error.message));
}

// The routes of the service, written from its own description of them.

const find = (id) => document.getElementById(id);

// What stands between backticks is code.
function write(element, text) {
  element.replaceChildren(...text.split("`").map((part, number) => {
    if (number % 2 === 0) return part;
    const code = document.createElement("code");
    code.textContent = part;
    return code;
  }));
}

function add(parent, name, text) {
  const element = document.createElement(name);
  write(element, text ?? "");
  parent.append(element);
  return element;
}

const nameOf = (reference) => reference.split("/").pop();

// The type of a value, in a few words.
function typeOf(schema) {
  if (schema.$ref) return nameOf(schema.$ref);
  if (schema.anyOf ?? schema.oneOf) return (schema.anyOf ?? schema.oneOf).map(typeOf).join(" or ");
  if (schema.type === "array") return `list of ${typeOf(schema.items ?? {})}`;
  return schema.type ?? "anything";
}

// What a description says of the whole, and of each field: `name: What it is.`, one below the other.
function told(schema) {
  const [whole, ...rest] = (schema.description ?? "").split(/\n\s*Attributes:\n/);
  const lines = rest.join("").split(/\n(?=\s{0,4}\w+: )/);
  return { whole, fields: Object.fromEntries(lines.map((line) => line.trim().split(/: ([^]*)/, 2))) };
}

// `inherited` describes fields of which the schema itself says nothing.
function addSchema(parent, name, schema, inherited) {
  add(parent, "h2", name).id = name;
  const { whole, fields } = told(schema);
  add(parent, "p", whole);
  const table = add(parent, "table");
  for (const [field, value] of Object.entries(schema.properties ?? {})) {
    const row = add(table, "tr");
    add(add(row, "td"), "code", field);
    const must = (schema.required ?? []).includes(field);
    add(row, "td", typeOf(value) + (must ? "" : `, by default ${JSON.stringify(value.default)}`));
    add(row, "td", (fields[field] ?? inherited[field] ?? "").replace(/\s+/g, " "));
  }
}

function addRoute(parent, path, method, route) {
  add(parent, "h2", `${method.toUpperCase()} ${path}`);
  add(parent, "p", `${route.summary}. ${route.description ?? ""}`);
  const asked = route.requestBody?.content["application/json"].schema;
  if (asked) add(parent, "p", `Body: ${typeOf(asked)}.`);
  const reply = route.responses["200"].content?.["application/json"]?.schema;
  if (reply && Object.keys(reply).length) add(parent, "p", `Reply: ${typeOf(reply)}.`);
}

async function start() {
  try {
    const reply = await fetch("openapi.json");
    const description = await reply.json();
    if (!reply.ok) throw new Error(description.error);
    find("title").textContent = description.info.title;
    write(find("about"), description.info.description);
    const routes = find("routes");
    add(routes, "pre", `curl -H 'content-type: application/json' -d '{"puzzle": "..."}' ${location.origin}/solve
curl -H 'content-type: application/json' -d '{"puzzles": ["...", "..."]}' ${location.origin}/solve`);
    for (const [path, methods] of Object.entries(description.paths)) {
      for (const [method, route] of Object.entries(methods)) addRoute(routes, path, method, route);
    }
    const { schemas } = description.components;
    for (const [name, schema] of Object.entries(schemas)) {
      const bases = name.endsWith("Question") ? ["Question"] : ["Answer", "Sought"];
      const inherited = Object.assign({}, ...bases.map((base) => told(schemas[base]).fields));
      if (!/ValidationError/.test(name)) addSchema(routes, name, schema, inherited);
    }
  } catch (failure) {
    find("about").textContent = `The service does not answer: ${failure.message}`;
  }
}

start();

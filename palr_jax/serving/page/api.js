// Requests to the server. Every failure is an ApiError that says what a user can read.

export class ApiError extends Error {
  constructor(status, field, message, nearest = []) {
    super(message);
    this.status = status; // 0: the server does not answer
    this.field = field;
    this.nearest = nearest;
  }
}

function key() {
  return sessionStorage.getItem("key");
}

async function asked(path, options) {
  const headers = { ...options.headers };
  if (key()) headers.authorization = `Bearer ${key()}`;
  try {
    return await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, null, "The server does not answer.");
  }
}

async function read(response) {
  let body;
  try {
    body = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(response.status, null, `The server answers ${response.status} and no JSON.`);
  }
  if (response.ok) return body;
  const told = body.error ?? { field: null, message: `The server answers ${response.status}.` };
  throw new ApiError(response.status, told.field, told.message, told.nearest);
}

export async function get(path, signal) {
  return read(await asked(path, { signal }));
}

export async function post(path, body, signal) {
  const headers = { "content-type": "application/json" };
  return read(await asked(path, { method: "POST", headers, body: JSON.stringify(body), signal }));
}

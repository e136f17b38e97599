// The bearer token: in this tab's storage, which ends with it, and in the header of requests; nowhere else.

const NAME = "streamactors-token";

export const token = () => sessionStorage.getItem(NAME);

export function keepToken(value) {
  if (value === "") sessionStorage.removeItem(NAME);
  else sessionStorage.setItem(NAME, value);
}

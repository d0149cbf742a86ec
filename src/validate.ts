// setTimeout takes more than this for 1 ms, and prints a warning.
const LONGEST_TIMER = 2_147_483_647

const show = (value: unknown): string => {
  if (value === null || value === undefined) return String(value)
  if (typeof value === 'string') return `${JSON.stringify(value.length > 60 ? `${value.slice(0, 60)}…` : value)} (string)`
  if (typeof value === 'object') return showObject(value)
  if (typeof value === 'function') return 'a function'
  return `${String(value)} (${typeof value})`
}

const showObject = (value: object): string => {
  try {
    if (Array.isArray(value)) return 'an array'
    const prototype: unknown = Object.getPrototypeOf(value)
    // Of its class: data may have a key of this name.
    return isObject(prototype) ? `an object (${prototype.constructor.name})` : 'an object (null prototype)'
  } catch {
    // A Proxy, or a getter, that throws.
    return 'an object'
  }
}

/** The sentence that every complaint about an argument is made of. */
export const expected = (name: string, what: string, got: unknown): string => `Expected \`${name}\` to be ${what}, got ${show(got)}`

export const isObject = (value: unknown): value is object => typeof value === 'object' && value !== null

/** Refuses what is no plain options object, and options that nobody reads: a misspelt limit is no limit. */
export const checkKeys = (name: string, options: unknown, known: readonly string[]): void => {
  if (!isObject(options) || Array.isArray(options)) throw new TypeError(expected(name, 'an object', options))
  for (const key of Object.keys(options)) {
    if (!known.includes(key)) throw new TypeError(`Unknown key \`${key}\` in \`${name}\`; known are ${known.map(k => `\`${k}\``).join(', ')}`)
  }
}

const checkNumber = (name: string, what: string, value: unknown, fits: (value: number) => boolean): number => {
  if (typeof value !== 'number') throw new TypeError(expected(name, what, value))
  if (!fits(value)) throw new RangeError(expected(name, what, value))
  return value
}

export const nonNegativeInteger = (name: string, value: unknown): number =>
  checkNumber(name, 'a non-negative integer', value, n => Number.isSafeInteger(n) && n >= 0)

export const positiveInteger = (name: string, value: unknown): number =>
  checkNumber(name, 'a positive integer', value, n => Number.isSafeInteger(n) && n > 0)

export const limit = (name: string, value: unknown): number =>
  checkNumber(name, 'a positive integer or Infinity', value, n => n === Infinity || (Number.isSafeInteger(n) && n > 0))

export const milliseconds = (name: string, value: unknown): number =>
  checkNumber(name, `a number of milliseconds from 0 to ${LONGEST_TIMER}`, value, n => n >= 0 && n <= LONGEST_TIMER)

/** A period in milliseconds, or `false` for never. */
export const period = (name: string, value: unknown): number | false =>
  value === false
    ? false
    : checkNumber(name, `a number of milliseconds above 0 and up to ${LONGEST_TIMER}, or false`, value, n => n > 0 && n <= LONGEST_TIMER)

export const oneOf = <const T extends string>(name: string, value: unknown, choices: readonly T[]): T => {
  if (!choices.includes(value as T)) throw new TypeError(expected(name, `one of ${choices.map(c => JSON.stringify(c)).join(', ')}`, value))
  return value as T
}

export const checkString = (name: string, value: unknown): string => {
  if (typeof value !== 'string') throw new TypeError(expected(name, 'a string', value))
  return value
}

export const isThenable = (value: unknown): value is PromiseLike<unknown> => isObject(value) && 'then' in value && typeof value.then === 'function'

/** Nobody has to look at it, whatever it is. */
export const ignoreRejection = (value: unknown): void => {
  if (isThenable(value)) value.then(undefined, () => {})
}

/** What an app's function says, yes or no. A promise would mean yes, whatever it holds. */
export const yesOrNo = (name: string, answer: unknown): boolean => {
  if (!isThenable(answer)) return Boolean(answer)
  ignoreRejection(answer)
  throw new TypeError(`Expected \`${name}\` to return a boolean, got a promise: look up what it needs beforehand`)
}

export const checkFunction = <T>(name: string, value: T): T => {
  if (typeof value !== 'function') throw new TypeError(expected(name, 'a function', value))
  return value
}

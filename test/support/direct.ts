import Koa, { type Context } from 'koa'

/** `it` where bytes may go past the body. Behind `npm run test:plain`, Koa pipes it, and it is Node's streams that a response throws at. */
export const direct: Mocha.TestFunction | undefined = 'respond' in new Koa().context ? undefined : it

/** From now on `res.write` calls `see` before it writes. */
export const watched = ({ res }: Pick<Context, 'res'>, see: (text: string) => void): void => {
  const write = res.write.bind(res) as (chunk: unknown) => boolean
  res.write = (chunk: unknown) => {
    see(String(chunk))
    return write(chunk)
  }
}

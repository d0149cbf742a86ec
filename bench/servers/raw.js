// A plain node:http server, as one writes it by hand: what everything else is measured against.
import { once } from 'node:events'
import { frames } from '../payload.js'
import { Channels, HEAD, Kept } from './by-hand.js'

export const start = ({ keep = 0 }) => {
  const channels = new Channels()
  const kept = new Kept(keep)
  const listener = async (req, res) => {
    res.writeHead(200, HEAD)
    if (req.url.startsWith('/stream/')) {
      for await (const frame of frames(Number(req.url.slice(8)))) {
        if (!res.write(frame)) await once(res, 'drain')
      }
      res.end()
      return
    }
    const channel = req.url.slice(8)
    res.write(':\n\n')
    for (const frame of kept.after(req.headers['last-event-id'])) res.write(frame)
    channels.add(channel, res)
    res.on('close', () => channels.remove(channel, res))
  }
  const publish = (channel, data) => {
    const frame = kept.frame(data)
    for (const res of channels.of(channel)) res.write(frame)
    return kept.lastId
  }
  return { listener, publish }
}

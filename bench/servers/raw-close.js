// The plain server without chunked framing: the response ends with its connection.
import { Channels, HEAD, Kept } from './by-hand.js'

export const start = () => {
  const channels = new Channels()
  const kept = new Kept(0)
  const listener = (req, res) => {
    const channel = req.url.slice(8)
    res.useChunkedEncodingByDefault = false
    res.writeHead(200, { ...HEAD, Connection: 'close' })
    res.write(':\n\n')
    channels.add(channel, res)
    res.on('close', () => channels.remove(channel, res))
  }
  const publish = (channel, data) => {
    const frame = kept.frame(data)
    for (const res of channels.of(channel)) res.write(frame)
  }
  return { listener, publish }
}

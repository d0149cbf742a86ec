// The limit: one buffer with its chunk framing, straight to each socket. No server should do so by hand.
import { Channels, HEAD, Kept } from './by-hand.js'

export const start = () => {
  const channels = new Channels()
  const kept = new Kept(0)
  const listener = (req, res) => {
    const channel = req.url.slice(8)
    const { socket } = res
    res.writeHead(200, HEAD)
    res.write(':\n\n')
    channels.add(channel, socket)
    res.on('close', () => channels.remove(channel, socket))
  }
  const publish = (channel, data) => {
    const frame = kept.frame(data)
    const chunk = Buffer.from(`${Buffer.byteLength(frame).toString(16)}\r\n${frame}\r\n`)
    for (const socket of channels.of(channel)) socket.write(chunk)
  }
  return { listener, publish }
}

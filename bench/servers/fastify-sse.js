import fastify from 'fastify'
import fastifySse from '@fastify/sse'
import { payloads } from '../payload.js'

export const start = async () => {
  const app = fastify()
  await app.register(fastifySse)
  app.get('/stream/:count', { sse: 'only' }, (request, reply) => reply.sse.send(payloads(Number(request.params.count))))
  app.get('/events/:channel', { sse: 'only' }, async (request, reply) => {
    reply.sse.keepAlive()
    await reply.sse.send({ data: '' })
  })
  await app.ready()
  return { server: app.server }
}

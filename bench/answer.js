/** Answers the calls that run.js makes over IPC. The process ends with its parent. */
export const answer = commands => {
  const run = async ({ id, command, args }) => {
    try {
      const result = await commands[command](args)
      if (id !== undefined) process.send({ id, result })
    } catch (error) {
      if (id === undefined) throw error
      process.send({ id, error: error instanceof Error ? (error.stack ?? error.message) : String(error) })
    }
  }
  process.on('message', message => void run(message))
  // By exit, not by signal: only so is a CPU profile written.
  // oxlint-disable-next-line unicorn/no-process-exit
  process.on('disconnect', () => process.exit())
}
